"""Keys, splits and the choice of a sample."""

import collections

from hypothesis import given
from hypothesis import strategies as st
import pytest

from gshard_tf.corpus import sampling
from gshard_tf.corpus import splits
from gshard_tf.corpus.extraction import Pair


@pytest.mark.parametrize('variant', [
    'Delete 3 pages?', 'delete %(count)s PAGES', '"Delete {n} pages"', 'Delete pages...', 'ＤＥＬＥＴＥ pages'])
def test_variants_of_a_sentence_share_a_key(variant):
  assert splits.english_key(variant) == 'delete pages'


@pytest.mark.parametrize('other', ['Delete page', 'Pages delete', 'Delete all pages'])
def test_other_words_make_another_key(other):
  assert splits.english_key(other) != splits.english_key('Delete pages')


@given(st.text())
def test_a_key_is_its_own_key(text):
  key = splits.english_key(text)
  assert splits.english_key(key) == key


@given(st.text(), st.floats(0.01, 0.24))
def test_a_held_out_key_stays_held_out_when_more_is_held_out(key, share):
  if splits.split_of(key, share) == 'dev':
    assert splits.split_of(key, 2 * share) == 'dev'
  if splits.split_of(key, share) == 'test':
    assert splits.split_of(key, 2 * share) != 'train'


def test_the_shares_of_the_splits_hold():
  counts = collections.Counter(splits.split_of(f'key {i}', 0.05) for i in range(20_000))
  assert counts['dev'] == pytest.approx(1000, rel=0.15)
  assert counts['test'] == pytest.approx(1000, rel=0.15)


@pytest.mark.parametrize('held_out', [-0.1, 0.5, float('nan')])
def test_a_share_that_leaves_no_training_data_is_refused(held_out):
  with pytest.raises(ValueError, match='held_out'):
    splits.split_of('key', held_out)


def _pair(language, key, source='x'):
  return Pair(language, source, key, key, 'package')


def _letters(number):
  return ''.join(chr(ord('a') + int(digit)) for digit in str(number))


def test_a_sample_prefers_shared_sentences_and_gives_unequal_languages():
  pairs = [_pair(language, f'shared {_letters(i)}') for i in range(200) for language in ('de', 'fr', 'it')]
  pairs = [_pair('de', f'lone {_letters(i)}') for i in range(200)] + pairs
  chosen = sampling.sample(pairs, most=80, fewest=20, held_out=0.1)
  counts = collections.Counter(pair.language for pair in chosen['train'])
  assert counts == {'de': 80, 'fr': 40, 'it': 20}
  assert all(pair.key.startswith('shared') for pair in chosen['train'])
  for split, pairs_of_split in chosen.items():
    assert {splits.split_of(pair.key, 0.1) for pair in pairs_of_split} == {split}


def test_a_sample_takes_the_first_translation_and_does_not_depend_on_language_order():
  pairs = [_pair(language, f'key {_letters(i)}', source) for i in range(50) for language in ('de', 'fr')
           for source in ('first', 'second')]
  chosen = sampling.sample(pairs, most=30, fewest=30, held_out=0.1)
  assert {pair.source for split in chosen.values() for pair in split} == {'first'}
  reordered = sorted(pairs, key=lambda pair: (pair.source, pair.language))
  assert sampling.sample(reordered, most=30, fewest=30, held_out=0.1) == chosen


def test_everything_keeps_all_translations():
  pairs = [_pair('de', 'key', 'first'), _pair('de', 'key', 'second')]
  assert sum(map(len, sampling.all_by_split(pairs, 0.04).values())) == 2


@pytest.mark.parametrize('most, fewest', [(10, 20), (10, 0), (0, 0)])
def test_quotas_that_do_not_fall_are_refused(most, fewest):
  with pytest.raises(ValueError, match='do not fall'):
    sampling.quotas({'de': 1}, most, fewest)
