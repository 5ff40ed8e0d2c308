"""Tests of gshard_tf.input.tokenizer."""

import random
import subprocess
import sys

import pytest
import sentencepiece

from gshard_tf.input import tokenizer as tokenizers
from tests.input import languages


@pytest.fixture(name='tokenizer', scope='module')
def _tokenizer(world):
  return tokenizers.Tokenizer(world.models[0])


def test_text_comes_back(world, tokenizer):
  for text in world.corpus.sources:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize('text', ['ꙮ 日本語', '🦜', 'Zażółć gęślą jaźń'])
def test_characters_outside_the_vocabulary_are_spelled_in_bytes(tokenizer, text):
  ids = tokenizer.encode(text)
  assert tokenizers.UNK not in ids
  assert tokenizer.decode(ids) == text


def test_text_is_normalised(tokenizer):
  assert tokenizer.encode('ﬁ  ａ') == tokenizer.encode('fi a')


def test_decode_ends_at_eos_and_leaves_out_pad_and_bos(tokenizer):
  ids = tokenizer.encode('abc def')
  padded = [tokenizers.BOS, *ids, tokenizers.EOS, *ids, tokenizers.PAD]
  assert tokenizer.decode(padded) == 'abc def'
  assert tokenizer.decode([*ids, tokenizers.PAD]) == 'abc def'
  assert not tokenizer.decode([])


@pytest.mark.parametrize('bad', [-1, 380])
def test_decode_refuses_ids_outside_the_vocabulary(tokenizer, bad):
  assert tokenizer.size == 380
  with pytest.raises(tokenizers.VocabularyError, match=r'not all in 0\.\.379'):
    tokenizer.decode([5, bad])


def test_training_gives_the_same_bytes_and_holds_no_path(world):
  model = tokenizers.train_vocabulary(world.corpus.sources, 380)
  assert model == world.models[0].read_bytes()
  assert str(world.path.parent).encode() not in model
  assert tokenizers.Tokenizer(world.models[0]).serialized == model


@pytest.mark.parametrize('size, relation', [(10**6, 'more than'), (270, 'fewer than')])
def test_a_refused_size_comes_with_the_limit(world, size, relation):
  with pytest.raises(tokenizers.VocabularyError,
                     match=fr'{size} pieces are {relation} the (\d+)') as error:
    tokenizers.train_vocabulary(world.corpus.sources, size)
  limit = int(str(error.value).split(' the ')[1].split()[0])
  beyond = limit + (1 if size > limit else -1)
  assert tokenizers.train_vocabulary(world.corpus.sources, limit)
  with pytest.raises(tokenizers.VocabularyError):
    tokenizers.train_vocabulary(world.corpus.sources, beyond)


def test_no_sentences_are_refused():
  with pytest.raises(tokenizers.VocabularyError, match='0 sentences'):
    tokenizers.train_vocabulary([], 300)


def test_a_missing_file_or_one_of_another_kind_is_refused(tmp_path):
  path = tmp_path / 'source.model'
  with pytest.raises(tokenizers.VocabularyError, match='no such vocabulary'):
    tokenizers.Tokenizer(path)
  path.write_bytes(b'not a model')
  with pytest.raises(tokenizers.VocabularyError, match='not a SentencePiece model'):
    tokenizers.Tokenizer(path)


def test_other_special_ids_are_refused(tmp_path):
  rng = random.Random(0)
  path = tmp_path / 'other.model'
  with path.open('wb') as model:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(
            [languages.sentence(rng, 'en', 8) for _ in range(200)]),
        model_writer=model, vocab_size=60, minloglevel=2)
  with pytest.raises(tokenizers.VocabularyError,
                     match=r'are \(-1, 1, 2, 0\), not \(0, 1, 2, 3\)'):
    tokenizers.Tokenizer(path)


def test_decoding_needs_no_tensorflow():
  script = ('import sys, gshard_tf.input.tokenizer; '
            'sys.exit("tensorflow" in sys.modules)')
  assert subprocess.run([sys.executable, '-c', script], check=False).returncode == 0
