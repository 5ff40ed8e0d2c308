"""The corpus that is committed in data/."""

import collections
import pathlib
import re
import unicodedata

import pytest

from gshard_tf.corpus import cleaning
from gshard_tf.corpus import languages
from gshard_tf.corpus import sources
from gshard_tf.corpus import splits

_DATA = pathlib.Path(__file__).parents[2] / 'data'


@pytest.fixture(scope='module')
def rows():
  """Returns the lines of each split, in columns."""
  texts = {split: (_DATA / f'{split}.tsv').read_text(encoding='utf-8') for split in splits.SPLITS}
  return {split: [line.split('\t') for line in text.split('\n')[:-1]] for split, text in texts.items()}


def test_every_line_has_a_known_language_and_two_sentences(rows):
  for row in (row for split in rows.values() for row in split):
    assert len(row) == 3 and row[0] in languages.LANGUAGES and all(row), row
    assert all(unicodedata.is_normalized('NFC', text) and text == ' '.join(text.split()) for text in row), row
    assert 3 <= len(cleaning.words(row[2])) <= 20, row


def test_every_line_passes_the_cleaning_unchanged(rows):
  for language, source, english in (row for split in rows.values() for row in split):
    assert cleaning.clean_pair(source, english, language) == (source, english)


def test_no_key_stands_in_two_splits(rows):
  keys = {split: {splits.english_key(row[2]) for row in rows[split]} for split in splits.SPLITS}
  for split, keys_of_split in keys.items():
    assert {splits.split_of(key) for key in keys_of_split} == {split}
  assert len(set.union(*keys.values())) == sum(map(len, keys.values()))


def test_every_language_is_in_every_split(rows):
  counts = {split: collections.Counter(row[0] for row in rows[split]) for split in splits.SPLITS}
  assert len(counts['train']) >= 20
  assert counts['train'].keys() == counts['dev'].keys() == counts['test'].keys()
  assert min(counts['test'].values()) >= 15
  assert max(counts['train'].values()) >= 4 * min(counts['train'].values())


def test_a_sentence_has_one_translation_in_a_language(rows):
  pairs = [(row[0], splits.english_key(row[2])) for split in rows.values() for row in split]
  assert len(pairs) == len(set(pairs))


def test_it_is_small():
  assert sum(file.stat().st_size for file in _DATA.iterdir() if file.is_file()) <= 2_000_000


def test_the_notice_names_every_source_and_only_permissive_ones():
  notice = (_DATA / 'NOTICE').read_text(encoding='utf-8')
  _, packages = (_DATA / 'README.md').read_text(encoding='utf-8').split('By package:')
  used = re.findall(r'([\w-]+) \d+[,.]', packages)
  rows_of_used = [source for source in sources.SOURCES if source.name in used]
  assert len(rows_of_used) == len(used) >= 5
  for source in rows_of_used:
    assert source.permissive
    assert f'{source.name} {source.version} ({source.registry})\nLicence: {source.licence}\n' in notice
  assert 'Apache License' in notice and 'Redistribution and use in source and binary forms' in notice


def test_the_description_counts_what_is_there(rows):
  readme = (_DATA / 'README.md').read_text(encoding='utf-8')
  counts = {split: collections.Counter(row[0] for row in rows[split]) for split in splits.SPLITS}
  for language in counts['train']:
    cells = ' | '.join(str(counts[split][language]) for split in splits.SPLITS)
    assert f'| {language} | {languages.english_name(language)} | {cells} |' in readme
