"""The guide to sharding: its code runs, and prints what it says."""

import contextlib
import io
import pathlib
import re

import pytest

GUIDE = pathlib.Path(__file__).parents[2] / 'docs/sharding.md'

pytestmark = pytest.mark.slow


def blocks():
  """(language, text, line) of each fenced block."""
  text = GUIDE.read_text()
  for match in re.finditer(r'^```(\w+)\n(.*?)^```$', text, re.M | re.S):
    yield match[1], match[2], text[:match.start()].count('\n') + 2


def appears(line, printed):
  """Whether a quoted line was printed, `...` standing for anything within a line."""
  pattern = '[^\n]*'.join(re.escape(part) for part in re.split(r'\s*\.\.\.\s*', line.strip()))
  return re.search(pattern, printed) is not None


def test_the_code_runs_and_prints_what_is_quoted(use_partitioner):
  use_partitioner('shardy')
  names, printed, quoted = {}, '', 0
  for language, text, line in blocks():
    if language == 'python':
      out = io.StringIO()
      with contextlib.redirect_stdout(out):
        exec(compile('\n' * (line - 1) + text, str(GUIDE), 'exec'), names)  # pylint: disable=exec-used
      printed = out.getvalue()
    else:
      assert language == 'text'
      for quote in text.splitlines():
        assert appears(quote, printed), f'{GUIDE.name}:{line}: {quote!r} is not in\n{printed}'
        quoted += 1
  assert quoted > 20


def test_a_quote_that_was_not_printed_is_found_out():
  assert appears('%dot = f32[2,64] dot(...', 'x\n  %dot = f32[2,64] dot(%a, %b), dims')
  assert appears('... dot(...', 'a dot(b)')
  assert not appears('%dot = f32[2,64] dot(...', '%dot = f32[2,\n64] dot(%a)')
  assert not appears('a ... c', 'a\nc')
