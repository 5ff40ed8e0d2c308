"""Which split a sentence pair belongs to: decided by its English side alone, for ever.

The same English sentence stands in dozens of languages. A pair is placed by a hash of a canonical key of
its English side, so that no sentence of dev or test was seen in training in another language or with
another number, name of a variable or full stop in it.
"""

import hashlib
import unicodedata

from gshard_tf.corpus import markup

SPLITS = ('train', 'dev', 'test')


def english_key(text: str) -> str:
  """Returns what makes an English sentence the same sentence: its words alone, case folded.

  Args:
    text: an English sentence; digits, punctuation and placeholders in it do not count.

  Returns:
    The words, separated by single spaces; empty for a text without letters.
  """
  text = unicodedata.normalize('NFKC', markup.PLACEHOLDER.sub(' ', text)).casefold()
  text = text.replace("'", '').replace('’', '')
  return ' '.join(''.join(c if c.isalpha() else ' ' for c in text).split())


def key_hash(key: str) -> int:
  """Returns a 64-bit hash of a key that is the same on every machine and in every year."""
  return int.from_bytes(hashlib.blake2b(key.encode('utf-8'), digest_size=8).digest(), 'big')


def split_of(key: str, held_out: float = 0.04) -> str:
  """Places a key in a split.

  Args:
    key: a canonical key, see `english_key`.
    held_out: share of the keys that goes to dev, and as much again to test; below 0.5.

  Returns:
    'train', 'dev' or 'test'.

  Raises:
    ValueError: when nothing would be left for training.
  """
  if not 0 <= held_out < 0.5:
    raise ValueError(f'held_out {held_out} for dev and as much for test leaves no training data; '
                     'set it from 0 to below 0.5')
  position = key_hash(key) / 2**64
  if position < held_out:
    return 'dev'
  return 'test' if position < 2 * held_out else 'train'
