"""Made-up languages to read: a corpus, its vocabularies, a plain-Python reader."""

import dataclasses
import pathlib
import random

from gshard_tf.input import corpus as corpora
from gshard_tf.input import tokenizer as tokenizers

LINES = {'aa': 400, 'bb': 60, 'cc': 140}
_LETTERS = {'aa': 'abcdefghij', 'bb': 'klmnopqrst', 'cc': 'αβγδεζηθικ',
            'en': 'abcdefghijklmnop'}


def sentence(rng, language, words):
  """A sentence of made-up words of a language."""
  return ' '.join(
      ''.join(rng.choices(_LETTERS[language], k=rng.randint(1, 4)))
      for _ in range(words))


def corpus_text(seed=0):
  """The text of a corpus file with LINES lines of each language, shuffled."""
  rng = random.Random(seed)
  codes = [code for code, lines in LINES.items() for _ in range(lines)]
  rng.shuffle(codes)
  return ''.join(
      f'{code}\t{sentence(rng, code, rng.randint(1, 12))}\t'
      f'{sentence(rng, "en", rng.randint(1, 12))}\n' for code in codes)


@dataclasses.dataclass(frozen=True)
class World:
  """The files, and what plain Python reads from them.

  Attributes:
    path: the corpus file.
    models: the source and the target vocabulary.
    corpus: the `corpus.Corpus` of the file.
    encoded: for each pair the source and target ids, each ended by an eos.
  """
  path: pathlib.Path
  models: tuple[pathlib.Path, pathlib.Path]
  corpus: corpora.Corpus
  encoded: list[tuple[list[int], list[int]]]


def make_world(folder):
  """Writes the files into a folder and reads them back."""
  path = folder / 'train.tsv'
  path.write_text(corpus_text(), encoding='utf-8')
  corpus = corpora.read_corpus(path)
  models = (folder / 'source.model', folder / 'target.model')
  for model, sentences in zip(models, (corpus.sources, corpus.targets)):
    model.write_bytes(tokenizers.train_vocabulary(sentences, 380))
  source, target = map(tokenizers.Tokenizer, models)
  encoded = [
      (source.encode(s) + [tokenizers.EOS], target.encode(t) + [tokenizers.EOS])
      for s, t in zip(corpus.sources, corpus.targets)]
  return World(path, models, corpus, encoded)
