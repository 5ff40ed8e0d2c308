"""How often each language is read: temperature sampling.

GShard (arXiv 2006.16668, section 4.1) follows Arivazhagan et al. (arXiv
1907.05019, section 4.2): language l, with D_l of the D sentence pairs, is drawn
with a probability proportional to (D_l / D)^(1/T). T=1 keeps the natural shares,
T=inf makes all languages equal; the paper trains with T=5.
"""

import numpy as np


def check_temperature(temperature):
  """Raises ValueError unless the temperature is a number above zero."""
  if not temperature > 0:
    raise ValueError(
        f'temperature is {temperature}, not > 0; set it to 1 for the natural '
        'shares of the languages, to 5 as in the paper, or to inf for equal ones')


def language_weights(counts, temperature):
  """Probability of drawing each language.

  Args:
    counts: <int>[L], sentence pairs of each language, each > 0.
    temperature: a number > 0, `inf` allowed.

  Returns:
    <float64>[L], the probabilities; they sum to 1.

  Raises:
    ValueError: no languages, an empty one, or a temperature that is not > 0.
  """
  check_temperature(temperature)
  counts = np.asarray(counts, np.float64)
  if counts.ndim != 1 or counts.size == 0 or not np.all(counts > 0):
    raise ValueError(
        f'sentence counts {counts.tolist()} are not all > 0; leave out the '
        'languages that have no sentences')
  # Divided by the largest count, so that no power overflows.
  weights = (counts / counts.max()) ** (1.0 / temperature)  # [L]
  return weights / weights.sum()
