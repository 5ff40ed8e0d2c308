"""Which of all pairs make a sample: English sentences that several languages share, unequal languages."""

import collections
from collections.abc import Iterable

from gshard_tf.corpus import splits
from gshard_tf.corpus.extraction import Pair

# A sentence that this share of the languages has counts as shared.
SHARED = 0.4
# However small a language is, its BLEU should rest on this many sentences.
MIN_HELD_OUT_PAIRS = 20


def quotas(available: dict[str, int], most: int, fewest: int) -> dict[str, int]:
  """Says how many training pairs each language may have, falling geometrically by rank.

  Args:
    available: pairs there are, by language.
    most: the quota of the language with the most pairs.
    fewest: the quota of the language with the fewest pairs.

  Returns:
    The quota of each language; languages of unequal size are what temperature sampling is for.

  Raises:
    ValueError: when the quotas do not fall or are not positive.
  """
  if not 0 < fewest <= most:
    raise ValueError(f'quotas from {most} down to {fewest} pairs do not fall; set fewest from 1 to {most}')
  ranked = sorted(available, key=lambda language: (-available[language], language))
  steps = max(len(ranked) - 1, 1)
  return {language: round(most * (fewest / most) ** (rank / steps)) for rank, language in enumerate(ranked)}


def one_per_key(pairs: Iterable[Pair]) -> list[Pair]:
  """Keeps the first pair of each language and English key."""
  first = {}
  for pair in pairs:
    first.setdefault((pair.language, pair.key), pair)
  return list(first.values())


def sample(pairs: list[Pair], most: int, fewest: int, held_out: float) -> dict[str, list[Pair]]:
  """Chooses pairs for a small corpus.

  Args:
    pairs: all pairs, those of the preferred packages first.
    most: training pairs of the largest language.
    fewest: training pairs of the smallest language.
    held_out: share of the English keys in dev, and in test.

  Returns:
    By split, its pairs: each language's own draw among the sentences that 40% of the languages have,
    and from the others where these do not suffice; one translation each.
  """
  pairs = one_per_key(pairs)
  breadth = collections.Counter(pair.key for pair in pairs)
  quota = quotas(collections.Counter(pair.language for pair in pairs), most, fewest)
  chosen = {split: [] for split in splits.SPLITS}
  taken = collections.Counter()
  shared = SHARED * len(quota)
  order = lambda p: (breadth[p.key] < shared, splits.key_hash(f'{p.language} {p.key}'), p.language)
  for pair in sorted(pairs, key=order):
    split = splits.split_of(pair.key, held_out)
    limit = quota[pair.language]
    if split != 'train':
      limit = max(MIN_HELD_OUT_PAIRS, round(limit * held_out))
    if taken[split, pair.language] < limit:
      taken[split, pair.language] += 1
      chosen[split].append(pair)
  return chosen


def all_by_split(pairs: list[Pair], held_out: float) -> dict[str, list[Pair]]:
  """Places every pair in its split, keeping other translations of the same sentence."""
  chosen = {split: [] for split in splits.SPLITS}
  for pair in pairs:
    chosen[splits.split_of(pair.key, held_out)].append(pair)
  return chosen
