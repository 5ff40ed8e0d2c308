"""Trains the source and the target vocabulary of a corpus.

  python -m tools.train_vocabulary
  python -m tools.train_vocabulary --corpus=data/train.tsv --output=data/vocabulary --source_size=4000 --target_size=2000

Writes source.model and target.model. The source vocabulary is trained on the
sentences of all languages, the small ones repeated so that their shares are
those of training at the same temperature; the target vocabulary on the distinct
English sentences. The same corpus gives the same bytes.
"""

import argparse
import itertools
import os
import sys

import numpy as np

from gshard_tf.input import corpus as corpora
from gshard_tf.input import mixing
from gshard_tf.input import tokenizer as tokenizers


def source_sentences(corpus, temperature):
  """The source sentences, repeated to temperature-flattened shares.

  Args:
    corpus: a `corpus.Corpus`.
    temperature: see `mixing.language_weights`.

  Returns:
    A list of str: each language's sentences in turn until it has its share.
  """
  weights = mixing.language_weights(corpus.counts, temperature)  # [languages]
  # The least total in which every sentence of every language appears.
  total = np.max(corpus.counts / weights)
  sentences = []
  for weight, pairs in zip(weights, corpus.by_language().values()):
    wanted = int(np.rint(total * weight))
    in_turn = itertools.cycle(source for source, _ in pairs)
    sentences.extend(itertools.islice(in_turn, wanted))
  return sentences


def train(corpus, source_size, target_size, temperature, character_coverage):
  """Trains both vocabularies.

  Args:
    corpus: a `corpus.Corpus`.
    source_size: pieces of the source vocabulary.
    target_size: pieces of the target vocabulary.
    temperature: see `source_sentences`.
    character_coverage: see `tokenizer.train_vocabulary`.

  Returns:
    {file name: model bytes}.

  Raises:
    VocabularyError: a size that the corpus does not support.
  """
  parts = (('source', source_size, source_sentences(corpus, temperature)),
           ('target', target_size, list(dict.fromkeys(corpus.targets))))
  models = {}
  for side, size, sentences in parts:
    try:
      models[f'{side}.model'] = tokenizers.train_vocabulary(
          sentences, size, character_coverage)
    except tokenizers.VocabularyError as error:
      raise tokenizers.VocabularyError(f'--{side}_size: {error}') from error
  return models


def check_output(output):
  """Raises FileExistsError if a vocabulary would be overwritten."""
  existing = [name for name in ('source.model', 'target.model')
              if os.path.exists(os.path.join(output, name))]
  if existing:
    raise FileExistsError(
        f'{output} has {" and ".join(existing)} already; give --force to '
        'overwrite, or another --output')


def write(models, output):
  """Writes the files of `train` into a folder."""
  os.makedirs(output, exist_ok=True)
  for name, model in models.items():
    with open(os.path.join(output, name), 'wb') as file:
      file.write(model)


def main(argv=None):
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(
      prog='train_vocabulary', usage=argparse.SUPPRESS, description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--corpus', default='data/train.tsv',
                      help='language<TAB>source<TAB>english a line')
  parser.add_argument('--output', default='data/vocabulary', help='a folder')
  parser.add_argument('--source_size', type=int, default=4000)
  parser.add_argument('--target_size', type=int, default=2000)
  parser.add_argument('--temperature', type=float, default=5.0)
  parser.add_argument('--character_coverage', type=float, default=0.9995)
  parser.add_argument('--force', action='store_true',
                      help='overwrite what is in --output')
  args = parser.parse_args(argv)
  try:
    if not args.force:
      check_output(args.output)
    corpus = corpora.read_corpus(args.corpus)
    models = train(corpus, args.source_size, args.target_size,
                   args.temperature, args.character_coverage)
    write(models, args.output)
  except (ValueError, OSError) as error:
    print(f'train_vocabulary: error: {error}', file=sys.stderr)
    return 2
  for name, size in (('source', args.source_size), ('target', args.target_size)):
    print(f'{os.path.join(args.output, name)}.model: {size} pieces from '
          f'{len(corpus)} sentence pairs in {len(corpus.languages)} languages')
  return 0


if __name__ == '__main__':
  sys.exit(main())
