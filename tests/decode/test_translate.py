"""Tests of gshard_tf.decode.translate: a tiny lowered model on two devices."""

import functools

import numpy as np
import pytest

from gshard_tf.decode import translate
from gshard_tf.input import corpus as corpora
from gshard_tf.input import tokenizer as tokenizers
from tests import lowered
from tests.lowered import Small

pytestmark = pytest.mark.slow

MESH = (2, 1)


@functools.cache
def translator(beam):
  return translate.Translator(lowered.program(MESH), beam)


@functools.cache
def sentences():
  """More than the rows of a step, of lengths from a word to beyond the model's."""
  sources = corpora.read_corpus(lowered.DATA / 'dev.tsv').sources
  return list(dict.fromkeys(sources[::31]))[:Small.DECODE_ROWS + 5]


def greedy(source_ids):
  """Translations as ids, by the full model on the whole prefix at each step.

  No lowering, no cache, no batches of other shapes: the plainest form. As in
  the search, no pad or bos, and eos alone in the last place that a row has.
  """
  logits_of = lowered.Unlowered().logits
  rows, length = len(source_ids), Small.TARGET_LENGTH
  ids = np.zeros((rows, length), np.int32)
  ids[:, 0] = tokenizers.BOS
  used = (source_ids > 0).sum(1)
  limits = np.minimum(3 * used + 8, length)
  hypotheses = [[] for _ in range(rows)]
  for t in range(length):
    batch = dict(
        src=dict(ids=source_ids, segment_ids=(source_ids > 0).astype(np.int32)),
        tgt=dict(ids=ids, segment_ids=np.tile(np.arange(length) <= t, (rows, 1)).astype(np.int32)))
    scores = logits_of(lowered.talkative(), batch).numpy()[:, t]  # [B, V]
    scores[:, [tokenizers.PAD, tokenizers.BOS]] = -np.inf
    for row, hypothesis in enumerate(hypotheses):
      if hypothesis[-1:] != [tokenizers.EOS]:
        last = t + 1 == limits[row]
        hypothesis.append(tokenizers.EOS if last else int(scores[row].argmax()))
        if t + 1 < length:
          ids[row, t + 1] = hypothesis[-1]
  return hypotheses


def test_one_beam_is_greedy_search_by_the_full_model():
  texts = sentences()[:Small.ROWS]
  source, target = (tokenizers.Tokenizer(lowered.VOCABULARIES[s]) for s in ('source', 'target'))
  ids = np.zeros((Small.ROWS, Small.SOURCE_LENGTH), np.int32)
  for row, text in enumerate(texts):
    tokens = source.encode(text)[:Small.SOURCE_LENGTH - 1] + [tokenizers.EOS]
    ids[row, :len(tokens)] = tokens
  hypotheses = greedy(ids)
  # The model ends sentences at several places, its own and the last possible.
  lengths = {len(h) for h in hypotheses}
  assert len(lengths) > 3 and max(lengths) == Small.TARGET_LENGTH
  translations, _ = translator(1)(lowered.talkative(), texts)
  assert translations == [target.decode(h) for h in hypotheses]


def test_a_translation_does_not_depend_on_its_neighbours():
  texts = sentences()
  translations, _ = translator(2)(lowered.talkative(), texts)
  assert len(set(translations)) > len(texts) // 2
  backwards, _ = translator(2)(lowered.talkative(), texts[::-1])
  assert backwards == translations[::-1]
  for i in (0, len(texts) // 2, len(texts) - 1):
    assert translator(2)(lowered.talkative(), [texts[i]])[0] == [translations[i]]


def test_progress_counts_sentences():
  done = []
  translator(2)(lowered.talkative(), sentences(), done.append)
  assert done == [Small.DECODE_ROWS, len(sentences())]


def test_no_sentences():
  assert translator(2)(lowered.talkative(), []) == ([], 0)


def test_a_long_sentence_is_cut_and_counted():
  tokenizer = tokenizers.Tokenizer(lowered.VOCABULARIES['source'])
  limit = Small.SOURCE_LENGTH - 1  # and an eos
  words = ' '.join(str(n) for n in range(100)).split()
  cuts = {n: ' '.join(words[:n]) for n in range(1, 60)}
  fits = {n: len(tokenizer.encode(text)) <= limit for n, text in cuts.items()}
  longest = max(n for n in fits if fits[n])
  assert not fits[longest + 1] and not fits[59]
  texts = [cuts[longest], cuts[longest + 1], cuts[59]]
  translations, cut = translator(2)(lowered.talkative(), texts)
  assert cut == 2
  # What lies beyond the limit is not read, whatever it is.
  assert tokenizer.encode(cuts[59])[:limit] == tokenizer.encode(cuts[40])[:limit]
  assert translator(2)(lowered.talkative(), [cuts[40]]) == ([translations[2]], 1)


@pytest.mark.parametrize('beam', [0, -1, 3, 16, 32])
def test_a_beam_that_does_not_fit(beam):
  with pytest.raises(translate.BeamError, match=(
      f'--beam={beam}: the 16 rows .*{beam} beams on 2 devices; choose a divisor of 8')) as error:
    translate.Translator(lowered.program(MESH), beam)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('beam', [1, 2, 4, 8])
def test_a_beam_that_fits(beam):
  assert translate.Translator(lowered.program(MESH), beam)
