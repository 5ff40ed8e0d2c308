"""What TensorBoard shows of the experts: scalars, histograms, an image by language.

Dimensions: E experts, N languages.
"""

from matplotlib import colors
from matplotlib import figure as figures
from matplotlib import ticker
from matplotlib.backends import backend_agg
import numpy as np
import tensorboardX

_MOST_BARS = 64  # of a histogram, which is written every step; TensorBoard shows half as many
_PANELS_IN_A_ROW = 4


def add_load(events: tensorboardX.SummaryWriter, tag: str, load: np.ndarray, step: int):
  """Writes the load of one layer's experts.

  As a histogram with the numbers of experts along it, the load of expert e the bar
  from e to e + 1; where there are many, neighbours share a bar. As scalars
  `dead`, how many experts no choice fell on, and `busiest`, the highest load in
  multiples of an equal share.

  Args:
    events: where to.
    tag: LAYER/load; the scalars stand beside it.
    load: [E], shares that sum to 1.
    step: the step.
  """
  layer, num_experts = tag.rpartition('/')[0], len(load)
  bounds = np.unique(np.linspace(0, num_experts, _MOST_BARS + 1).astype(int))
  middle = np.arange(num_experts) + .5
  events.add_histogram_raw(
      tag, min=0., max=float(num_experts), num=float(load.sum()), sum=float(load @ middle),
      sum_squares=float(load @ middle**2), bucket_limits=bounds[1:].astype(float).tolist(),
      bucket_counts=np.add.reduceat(load.astype(float), bounds[:-1]).tolist(), global_step=step)
  events.add_scalar(f'{layer}/dead', float((load == 0).sum()), step)
  events.add_scalar(f'{layer}/busiest', float(load.max() * num_experts), step)


def draw(loads: dict[str, np.ndarray], languages) -> np.ndarray:
  """Which language uses which experts: one panel for each layer.

  Args:
    loads: by layer [N, E], for each language the experts' shares of its choices;
      zeros for a language without any, which is left white.
    languages: N codes.

  Returns:
    An image, uint8 [height, width, 3].
  """
  loads = {layer: loads[layer] for layer in sorted(loads, key=_order)}
  num_languages, most_experts = len(languages), max(load.shape[1] for load in loads.values())
  columns = min(len(loads), _PANELS_IN_A_ROW)
  rows = -(-len(loads) // columns)
  width = columns * np.clip(.25 * most_experts, 2.5, 6.) + 1.2  # inches, as are those below
  height = rows * (.8 + max(1.5, .17 * num_languages))
  figure = figures.Figure((width, height), dpi=100, layout='constrained')
  canvas = backend_agg.FigureCanvasAgg(figure)
  panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
  # By the root, so that one expert that is much used does not darken all others.
  norm = colors.PowerNorm(.5, 0., max(load.max() for load in loads.values()))
  for axes in panels.flat[len(loads):]:
    axes.set_axis_off()
  for axes, (layer, load) in zip(panels.flat, loads.items()):
    image = axes.imshow(np.where(load.any(1, keepdims=True), load, np.nan), norm=norm, aspect='auto',
                        interpolation='nearest')
    axes.set_title(layer, fontsize=9)
    axes.set_xlabel('expert', fontsize=8)
    axes.set_yticks(range(num_languages), languages)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=10, integer=True))
    axes.tick_params(labelsize=8)
  bar = figure.colorbar(image, ax=panels, fraction=.4 / width, aspect=height / .2)
  bar.set_label('share of choices', fontsize=8)
  bar.ax.tick_params(labelsize=8)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3]


def _order(layer):
  """The encoder first; encoder.blocks_3 before encoder.blocks_11."""
  return layer.startswith('decoder'), len(layer), layer
