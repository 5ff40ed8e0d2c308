"""sacreBLEU and chrF of a multilingual test set: per language, by reference length, and averaged over languages."""

from typing import Any, NamedTuple, Sequence

from sacrebleu.metrics import BLEU, CHRF

# References of fewer words are short: greetings and single clauses, where the 4-grams of BLEU say little.
SHORT_WORDS = 6


class Scores(NamedTuple):
  """Scores of a set of sentences.

  Attributes:
    bleu: corpus BLEU, 0..100.
    chrf: corpus chrF, 0..100.
    sentences: how many.
    copy_bleu: BLEU of the sources taken for translations, the floor to compare with; None without sources.
  """
  bleu: float
  chrf: float
  sentences: int
  copy_bleu: float | None = None


class SplitScores(NamedTuple):
  """Scores of all sentences, and of those with short and with long references (None where there are none)."""
  overall: Scores
  short: Scores | None
  long: Scores | None


class CorpusScores(NamedTuple):
  """What corpus_scores returns.

  Attributes:
    languages: scores by language, in alphabetical order.
    average: their unweighted means; each `sentences` is a sum.
    signature: sacreBLEU's signature of BLEU.
    chrf_signature: and of chrF.
  """
  languages: dict[str, SplitScores]
  average: SplitScores
  signature: str
  chrf_signature: str


class _Sentence(NamedTuple):
  hypothesis: str
  reference: str
  source: str | None


def corpus_scores(
    hypotheses: Sequence[str],
    references: Sequence[str],
    languages: Sequence[str],
    sources: Sequence[str] | None = None,
) -> CorpusScores:
  """Scores translations, detokenized, with sacreBLEU's default settings (BLEU tokenizes by 13a).

  Args:
    hypotheses: translations; empty ones count as such.
    references: one for each translation.
    languages: the source language of each.
    sources: the source sentences, for the BLEU of copying them; None to leave that out.

  Returns:
    CorpusScores.

  Raises:
    ValueError: if there are no sentences, or not equally many of each.
  """
  columns = {'references': references, 'languages': languages}
  if sources is not None:
    columns['sources'] = sources
  for name, column in columns.items():
    if len(column) != len(hypotheses):
      raise ValueError(f'{len(hypotheses)} hypotheses but {len(column)} {name}; pass one for each hypothesis')
  if not hypotheses:
    raise ValueError('0 hypotheses to score; pass at least one')

  by_language: dict[str, list[_Sentence]] = {language: [] for language in sorted(set(languages))}
  if sources is None:
    sources = [None] * len(hypotheses)
  for language, *sentence in zip(languages, hypotheses, references, sources):
    by_language[language].append(_Sentence(*sentence))

  bleu, chrf = BLEU(), CHRF()
  scores = {language: _split_scores(sentences, bleu, chrf) for language, sentences in by_language.items()}
  average = SplitScores(*(_average(list(column)) for column in zip(*scores.values())))
  return CorpusScores(scores, average, str(bleu.get_signature()), str(chrf.get_signature()))


def to_json(scores: CorpusScores) -> dict[str, Any]:
  """The scores as plain dictionaries, a key left out where its value is None.

  Args:
    scores: of corpus_scores.

  Returns:
    {"languages": {"de": {"bleu", "chrf", "sentences", "copy_bleu", "short": {...}, "long": {...}}},
    "average_bleu", "average_chrf", "average_copy_bleu", "average_short": {...}, "average_long": {...},
    "sentences", "signature", "chrf_signature"}.
  """
  languages = {
      language: _plain(split.overall) | _present({'short': _plain(split.short), 'long': _plain(split.long)})
      for language, split in scores.languages.items()}
  average = scores.average
  return {
      'languages': languages,
      **_present({
          'average_bleu': average.overall.bleu,
          'average_chrf': average.overall.chrf,
          'average_copy_bleu': average.overall.copy_bleu,
          'average_short': _plain(average.short),
          'average_long': _plain(average.long),
      }),
      'sentences': average.overall.sentences,
      'signature': scores.signature,
      'chrf_signature': scores.chrf_signature,
  }


def _split_scores(sentences: list[_Sentence], bleu: BLEU, chrf: CHRF) -> SplitScores:
  short = [s for s in sentences if len(s.reference.split()) < SHORT_WORDS]
  long = [s for s in sentences if len(s.reference.split()) >= SHORT_WORDS]
  return SplitScores(*(_scores(part, bleu, chrf) for part in (sentences, short, long)))


def _scores(sentences: list[_Sentence], bleu: BLEU, chrf: CHRF) -> Scores | None:
  if not sentences:
    return None
  hypotheses, references, sources = zip(*sentences)
  return Scores(
      bleu=bleu.corpus_score(hypotheses, [references]).score,
      chrf=chrf.corpus_score(hypotheses, [references]).score,
      sentences=len(sentences),
      copy_bleu=None if sources[0] is None else bleu.corpus_score(sources, [references]).score)


def _average(scores: list[Scores | None]) -> Scores | None:
  present = [score for score in scores if score is not None]
  if not present:
    return None
  bleu, chrf, sentences, copy_bleu = zip(*present)
  return Scores(
      bleu=sum(bleu) / len(present),
      chrf=sum(chrf) / len(present),
      sentences=sum(sentences),
      copy_bleu=None if copy_bleu[0] is None else sum(copy_bleu) / len(present))


def _plain(scores: Scores | None) -> dict[str, float] | None:
  return None if scores is None else _present(scores._asdict())


def _present(items: dict[str, Any]) -> dict[str, Any]:
  return {key: value for key, value in items.items() if value is not None}
