"""The files of a corpus: one table of pairs for each split, a notice and a description."""

import collections
import pathlib

from gshard_tf.corpus import languages
from gshard_tf.corpus import splits
from gshard_tf.corpus.extraction import Pair
from gshard_tf.corpus.sources import Source

_NOTICE = """\
The sentence pairs in train.tsv, dev.tsv and test.tsv come from the message catalogues of the packages
below. How the strings were used, and changed: user interface messages and their published translations
were extracted, stripped of markup and normalised, filtered, de-duplicated, paired with their English
original and sorted into splits. The strings stay under the licences of their packages, printed here in
full. Names and trademarks in them belong to their owners, none of whom endorses this corpus.
"""

_README = """\
# Sentence pairs into English

`train.tsv`, `dev.tsv` and `test.tsv` hold one pair a line, UTF-8 in NFC, no header:

    language<TAB>sentence in that language<TAB>English

The sentences are messages of translated software; [NOTICE](NOTICE) names the packages and their licences.

Built with

    {command}

A pair's split is decided by its English side: case folded, without digits, punctuation and
placeholders, it is hashed (BLAKE2b), and the hash places a share of {held_out:g} of all such keys in dev
and as many in test. No key stands in two splits, whatever the language.

| language | | train | dev | test |
|---|---|---|---|---|
{rows}

By package: {packages}.
"""

FILES = tuple(f'{split}.tsv' for split in splits.SPLITS) + ('NOTICE', 'README.md')


def counts_by_language(chosen: dict[str, list[Pair]]) -> dict[str, collections.Counter]:
  """Counts the pairs of each language by split, the largest language first."""
  counts = collections.defaultdict(collections.Counter)
  for split, pairs in chosen.items():
    for pair in pairs:
      counts[pair.language][split] += 1
  return dict(sorted(counts.items(), key=lambda item: (-item[1].total(), item[0])))


def counts_by_package(chosen: dict[str, list[Pair]]) -> collections.Counter:
  """Counts the pairs of each package."""
  return collections.Counter(pair.package for pairs in chosen.values() for pair in pairs)


def notice(licences: dict[Source, str]) -> str:
  """Writes the notice that the packages' licences ask for.

  Args:
    licences: the text of the licence, by package.
  """
  parts = [_NOTICE]
  for source, text in licences.items():
    head = (f'{source.name} {source.version} ({source.registry})\n'
            f'Licence: {source.licence}\nCopyright: {source.holder}')
    parts.append(f'{"=" * 80}\n{head}\n{"-" * 80}\n{text}\n')
  return '\n'.join(parts)


def readme(chosen: dict[str, list[Pair]], command: str, held_out: float) -> str:
  """Describes a corpus: format, command, split rule, counts.

  Args:
    chosen: by split, its pairs.
    command: the command that builds it.
    held_out: share of the keys in dev, and in test.
  """
  counts = counts_by_language(chosen)
  lines = [(tag, languages.english_name(tag), row) for tag, row in counts.items()]
  lines.append(('total', f'{len(counts)} languages', sum(counts.values(), collections.Counter())))
  rows = '\n'.join(f'| {tag} | {name} | ' + ' | '.join(str(row[split]) for split in splits.SPLITS) + ' |'
                   for tag, name, row in lines)
  packages = ', '.join(f'{name} {count}' for name, count in counts_by_package(chosen).most_common())
  return _README.format(command=command, held_out=held_out, rows=rows, packages=packages)


def write(output: pathlib.Path, chosen: dict[str, list[Pair]], notice_text: str, readme_text: str) -> int:
  """Writes the files of a corpus.

  Args:
    output: a directory, made when it is missing.
    chosen: by split, its pairs.
    notice_text: see `notice`.
    readme_text: see `readme`.

  Returns:
    Their size in bytes.
  """
  texts = {'NOTICE': notice_text, 'README.md': readme_text}
  for split, pairs in chosen.items():
    lines = sorted(f'{pair.language}\t{pair.source}\t{pair.english}\n' for pair in pairs)
    texts[f'{split}.tsv'] = ''.join(lines)
  output.mkdir(parents=True, exist_ok=True)
  for name, text in texts.items():
    (output / name).write_bytes(text.encode('utf-8'))
  return sum(len(text.encode('utf-8')) for text in texts.values())
