"""Files that a command writes its results to, opened before the work that may take long."""

import argparse


def add_json(parser: argparse.ArgumentParser):
  """Adds `--json`, which `OutputFiles` understands."""
  parser.add_argument('--json', nargs='?', const='-', metavar='FILE',
                      help='print the result as JSON on the last line, or write it to a file')


class OutputFiles:
  """Files given by name; what is in them stays until there is something else to write."""

  def __init__(self, *paths: str | None):
    """Opens them.

    Args:
      *paths: names; `-` for standard output, None for one that is not wanted.

    Raises:
      OSError: one cannot be written.
    """
    self._files = {path: open(path, 'ab') for path in paths if path not in (None, '-')}  # pylint: disable=consider-using-with

  def write(self, path: str | None, text: str):
    """Writes `text` as the whole of a file; see `__init__` for `path`."""
    if path == '-':
      print(text)
    elif path is not None:
      with self._files.pop(path) as f:
        if f.seekable():  # no pipe
          f.truncate(0)
        f.write(text.encode() + b'\n')
