"""SentencePiece vocabularies, in plain Python.

  model = train_vocabulary(sentences, size=4000)
  tokenizer = Tokenizer('data/vocabulary/source.model')
  tokenizer.decode(tokenizer.encode('Guten Morgen.'))

Every vocabulary has the same four special ids, below. Neither `encode` nor
`decode` deals in them: where a sentence begins and ends is the caller's part.
"""

import io
import os
import re

import sentencepiece

PAD, BOS, EOS, UNK = 0, 1, 2, 3


class VocabularyError(ValueError):
  """A vocabulary that cannot be used or made; the message is one line."""


class Tokenizer:
  """Text to ids and back, by one SentencePiece model file."""

  def __init__(self, path):
    """Loads a model.

    Args:
      path: the model file; a relative one starts at the current directory.

    Raises:
      VocabularyError: no such file, not a model, or other special ids.
    """
    if not os.path.isfile(path):
      raise VocabularyError(
          f'{path}: no such vocabulary; make it with '
          'python -m tools.train_vocabulary')
    try:
      self._processor = sentencepiece.SentencePieceProcessor(
          model_file=str(path))
    except RuntimeError as error:
      raise VocabularyError(
          f'{path}: not a SentencePiece model; make one with '
          'python -m tools.train_vocabulary') from error
    specials = (self._processor.pad_id(), self._processor.bos_id(),
                self._processor.eos_id(), self._processor.unk_id())
    if specials != (PAD, BOS, EOS, UNK):
      raise VocabularyError(
          f'{path}: pad, bos, eos, unk are {specials}, not '
          f'{(PAD, BOS, EOS, UNK)}; make it with '
          'python -m tools.train_vocabulary')

  @property
  def size(self):
    """The number of ids, the special ones included."""
    return self._processor.vocab_size()

  @property
  def serialized(self):
    """The model as bytes."""
    return self._processor.serialized_model_proto()

  def encode(self, text):
    """Returns the ids of a sentence, a list of int without bos and eos."""
    return self._processor.encode(text)

  def decode(self, ids):
    """Returns the text of a sequence of ids, up to the first eos.

    Args:
      ids: integers; pad and bos are left out, what follows an eos is ignored.

    Returns:
      The text, a str.

    Raises:
      VocabularyError: an id outside the vocabulary.
    """
    ids = [int(i) for i in ids]
    if EOS in ids:
      ids = ids[:ids.index(EOS)]
    if ids and not 0 <= min(ids) <= max(ids) < self.size:
      raise VocabularyError(
          f'ids {min(ids)}..{max(ids)} are not all in 0..{self.size - 1}; decode '
          'with the vocabulary that the model was trained with')
    return self._processor.decode([i for i in ids if i not in (PAD, BOS)])


def train_vocabulary(sentences, size, character_coverage=0.9995):
  """Trains a unigram vocabulary with byte fallback.

  The same sentences in the same order give the same bytes: one thread, no
  sampling, and neither a path nor a time in the model.

  Args:
    sentences: str, one sentence each; a repeated one counts as often.
    size: the number of ids, with the 4 special and the 256 byte pieces.
    character_coverage: the share of the text whose characters get a piece of
      their own; the rarest characters are spelled in bytes.

  Returns:
    The model, bytes.

  Raises:
    VocabularyError: the size is too large or too small for the sentences.
  """
  sentences = list(sentences)
  if not sentences:
    raise VocabularyError(f'0 sentences give no vocabulary of {size}; give some')
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type='unigram',
        vocab_size=size,
        character_coverage=character_coverage,
        byte_fallback=True,
        num_threads=1,
        pad_id=PAD,
        bos_id=BOS,
        eos_id=EOS,
        unk_id=UNK,
        minloglevel=2)
  except RuntimeError as error:
    raise VocabularyError(_size_message(str(error), size)) from error
  return model.getvalue()


def _size_message(error, size):
  """SentencePiece's complaint about a size as one line with a remedy."""
  largest = re.search(r'set it to a value <= (\d+)', error)
  if largest:
    return (f'{size} pieces are more than the {largest[1]} that this text '
            f'supports; ask for {largest[1]} or fewer, or give more text')
  smallest = re.search(r'smaller than required_chars\.\D*\d+\D+(\d+)', error)
  if smallest:
    return (f'{size} pieces are fewer than the {smallest[1]} characters and '
            f'special pieces; ask for {smallest[1]} or more, or lower the '
            'character coverage')
  return f'SentencePiece cannot train {size} pieces: {" ".join(error.split())}'
