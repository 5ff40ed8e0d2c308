"""Translates with a trained model, and scores the translations.

  python -m gshard_tf.decode --logdir=logdir
  python -m gshard_tf.decode --logdir=logdir --input=sentences.txt --lang=de
  echo 'Wie heißt du?' | python -m gshard_tf.decode --logdir=logdir --input=- --lang=de --beam=8

Without --input it translates a held-out split and prints BLEU and chrF of each
language. It needs the logdir alone, and no TensorFlow.
"""

import argparse
import json
import os
import sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # before JAX starts
# pylint: disable=g-import-not-at-top
import numpy as np

from gshard_tf import artifact as artifact_lib
from gshard_tf import output_files
from gshard_tf.decode import bleu
from gshard_tf.decode import report
from gshard_tf.decode import translate
from gshard_tf.input import corpus as corpora
from gshard_tf.runtime import checkpoint
from gshard_tf.runtime import mesh as mesh_lib
from gshard_tf.runtime import program as program_lib

_EXAMPLES = 6


class DecodeError(ValueError):
  """A request that cannot be met."""


class _Parser(argparse.ArgumentParser):
  """Says what is wrong with the flags in one line."""

  def error(self, message):
    self.exit(2, f'decode: {message}; --help shows examples\n')


def _parse_flags():
  parser = _Parser(prog='python -m gshard_tf.decode', description=__doc__,
                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--logdir', required=True, help='where the trainer wrote')
  parser.add_argument('--dataset', default='Test', help='Train, Dev or Test (%(default)s)')
  parser.add_argument('--input', help='a file of sentences, one a line; - for standard input')
  parser.add_argument('--lang', default='', help='language of the --input, repeated in the JSON result')
  parser.add_argument('--beam', type=int, default=4, help='beams for each sentence (%(default)s)')
  parser.add_argument('--untrained', action='store_true',
                      help="also score the model's initial weights")
  output_files.add_json(parser)
  return parser.parse_args()


def main():
  """Runs the command; returns its exit status."""
  args = _parse_flags()
  try:
    outputs = output_files.OutputFiles(args.json)
    sentences = _read_input(args.input) if args.input else None
    model = _Model(args.logdir, args.beam)
    if sentences is not None:
      translations = model.translate(sentences)
      print('\n'.join(translations))
      result = {'language': args.lang, 'translations': translations}
    else:
      result = _score(model, args)
    outputs.write(args.json, json.dumps(result))
    return 0
  except (OSError, DecodeError, translate.BeamError, mesh_lib.MeshError, corpora.CorpusError) as error:
    print(f'decode: {error}', file=sys.stderr)
    return 2


class _Model:
  """The newest checkpoint of a logdir, ready to translate."""

  def __init__(self, logdir, beam):
    folder = os.path.join(logdir, 'artifact')
    try:
      self.artifact = artifact_lib.Artifact.load(folder)
    except FileNotFoundError as error:
      raise DecodeError(f'no model in --logdir={logdir}; train one with python -m '
                        f'gshard_tf.trainer --logdir={logdir}') from error
    mesh_lib.set_platform(self.artifact.mesh_shape)
    mesh = mesh_lib.make(self.artifact.mesh_shape, self.artifact.mesh_axes)
    self._program = program_lib.Program(self.artifact, mesh)
    self._translator = translate.Translator(self._program, beam)
    saved = checkpoint.Checkpoints(os.path.join(logdir, 'checkpoints'), self.artifact.weights)
    self.step = saved.latest_step()
    if self.step is None:
      raise DecodeError(f'no checkpoint in --logdir={logdir} yet; let the trainer reach one')
    theta = lambda tree: {'theta': tree['theta']}
    state, place = saved.restore(self.step, theta(self._program.state_shapes),
                                 theta(self._program.state_shardings))
    self._theta, self._seed = state['theta'], place['seed']

  def translate(self, sentences, untrained=False):
    """Translates, with a line of progress on a terminal and a warning of cuts."""
    theta = self._program.init(np.int32(self._seed))['theta'] if untrained else self._theta
    tty = sys.stderr.isatty()
    say = lambda done: tty and print(f'\r{done}/{len(sentences)} sentences ', end='',
                                     file=sys.stderr, flush=True)
    translations, cut = self._translator(theta, sentences, say)
    if tty:
      print(file=sys.stderr)
    if cut:
      print(f'{cut} of {len(sentences)} sentences are longer than the model reads; '
            'their ends were cut off', file=sys.stderr)
    return translations


def _read_input(path):
  try:
    data = sys.stdin.buffer.read() if path == '-' else open(path, 'rb').read()
    return data.decode('utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise DecodeError(f'cannot read --input={path}: {error}') from error


def _score(model, args):
  """Translates and scores a data set, prints the table, returns the JSON result."""
  inputs = model.artifact.inputs
  if args.dataset not in inputs:
    raise DecodeError(f'no data set {args.dataset}; choose one of {", ".join(inputs)}')
  corpus = corpora.read_corpus(inputs[args.dataset])
  languages = [corpus.languages[i] for i in corpus.language]
  sources, references = list(corpus.sources), list(corpus.targets)
  translations = model.translate(sources)
  scores = bleu.corpus_scores(translations, references, languages, sources)
  result = bleu.to_json(scores)
  print(f'{model.artifact.model}, step {model.step}, {inputs[args.dataset]}, beam {args.beam}')
  report.print_scores(scores)
  if args.untrained:
    before = bleu.corpus_scores(model.translate(sources, untrained=True), references, languages)
    result['untrained_average_chrf'] = before.average.overall.chrf
    print(f'chrF of the untrained model: {before.average.overall.chrf:.1f}')
  report.print_examples([
      report.Example(languages[i], sources[i], translations[i], references[i])
      for i in report.spread_over_languages(languages, _EXAMPLES)])
  return result


if __name__ == '__main__':
  sys.exit(main())
