"""Scores against direct calls of sacreBLEU."""

import pytest
import sacrebleu

from gshard_tf.decode.bleu import Scores, corpus_scores, to_json

LANGUAGES = ['fr', 'de', 'fr', 'de', 'fr', 'de']
REFERENCES = [
    'The cat sat quietly on the mat.', 'Good morning, everyone!', 'We will meet again in the old town tomorrow.',
    'The committee has not yet decided on the date.', 'Thank you.', 'She sold the house by the lake last year.']
HYPOTHESES = [
    'The cat sat on the mat quietly.', 'Good morning, all!', 'We will meet again in the old city tomorrow.',
    'The committee has not yet decided about a date.', '', 'She has sold the house by the lake last year.']
SOURCES = [
    'Le chat est assis on the mat.', 'Guten Morgen!', 'Nous nous reverrons.',
    'Das Komitee hat not yet decided on.', 'Merci.', 'Sie hat das Haus am See verkauft.']


def rows(language, is_short=None):
  return [i for i, name in enumerate(LANGUAGES)
          if name == language and is_short in (None, len(REFERENCES[i].split()) < 6)]


def direct(indices, translations=HYPOTHESES):
  """What sacreBLEU's own functions say of these sentences."""
  translations = [translations[i] for i in indices]
  references = [[REFERENCES[i] for i in indices]]
  return (sacrebleu.corpus_bleu(translations, references).score, sacrebleu.corpus_chrf(translations, references).score)


@pytest.mark.parametrize('language', ['de', 'fr'])
def test_each_language_and_length_scores_as_sacrebleu_does(language):
  scores = corpus_scores(HYPOTHESES, REFERENCES, LANGUAGES, SOURCES).languages[language]
  for part, is_short in (scores.overall, None), (scores.short, True), (scores.long, False):
    indices = rows(language, is_short)
    assert (part.bleu, part.chrf) == pytest.approx(direct(indices))
    assert part.sentences == len(indices)
    assert part.copy_bleu == pytest.approx(direct(indices, SOURCES)[0])
  assert scores.overall.bleu > scores.overall.copy_bleu > 0


def test_averages_weigh_languages_alike():
  scores = corpus_scores(HYPOTHESES[:5], REFERENCES[:5], LANGUAGES[:5])
  german, french = direct([1, 3]), direct([0, 2, 4])
  assert scores.average.overall == pytest.approx(
      Scores((german[0] + french[0]) / 2, (german[1] + french[1]) / 2, 5))
  assert list(scores.languages) == ['de', 'fr']


def test_perfect_and_empty_translations():
  perfect = corpus_scores(REFERENCES, REFERENCES, LANGUAGES).average.overall
  assert (perfect.bleu, perfect.chrf) == pytest.approx((100, 100))
  empty = corpus_scores([''] * 6, REFERENCES, LANGUAGES).average.overall
  assert empty == Scores(0, 0, 6)


def test_a_length_that_does_not_occur_is_left_out_of_the_averages():
  scores = corpus_scores(HYPOTHESES[:2], REFERENCES[:2], LANGUAGES[:2])
  assert scores.languages['fr'].short is None and scores.languages['de'].long is None
  assert scores.average.short == scores.languages['de'].short
  assert corpus_scores(HYPOTHESES[:1], REFERENCES[:1], ['fr']).average.short is None


def test_json_holds_the_contract_and_no_nulls():
  scores = corpus_scores(HYPOTHESES, REFERENCES, LANGUAGES)
  plain = to_json(scores)
  assert plain['languages']['de'] == {
      'bleu': scores.languages['de'].overall.bleu, 'chrf': scores.languages['de'].overall.chrf, 'sentences': 3,
      'short': {'bleu': scores.languages['de'].short.bleu, 'chrf': scores.languages['de'].short.chrf, 'sentences': 1},
      'long': {'bleu': scores.languages['de'].long.bleu, 'chrf': scores.languages['de'].long.chrf, 'sentences': 2}}
  assert plain['average_bleu'] == scores.average.overall.bleu
  assert plain['average_chrf'] == scores.average.overall.chrf
  assert 'average_copy_bleu' not in plain
  assert 'tok:13a' in plain['signature'] and 'nc:6' in plain['chrf_signature']

  with_sources = to_json(corpus_scores(HYPOTHESES, REFERENCES, LANGUAGES, SOURCES))
  copies = [with_sources['languages'][language]['copy_bleu'] for language in ('de', 'fr')]
  assert with_sources['average_copy_bleu'] == pytest.approx(sum(copies) / 2)


@pytest.mark.parametrize('arguments, message', [
    ((['a', 'b'], ['a'], ['de', 'de']), '2 hypotheses but 1 references'),
    ((['a'], ['a'], ['de', 'de']), '1 hypotheses but 2 languages'),
    ((['a'], ['a'], ['de'], []), '1 hypotheses but 0 sources'),
    (([], [], []), '0 hypotheses'),
])
def test_wrong_arguments_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    corpus_scores(*arguments)
