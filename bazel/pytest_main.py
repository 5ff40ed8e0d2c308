"""Runs pytest on the files named in the arguments: `main` of a py_test."""

import os
import sys

import pytest

if __name__ == '__main__':
  args = ['-p', 'no:cacheprovider']  # the source tree is not ours to write
  if 'XML_OUTPUT_FILE' in os.environ:
    args.append('--junitxml=' + os.environ['XML_OUTPUT_FILE'])
  code = pytest.main(args + sys.argv[1:])
  # A file of which the caller deselected every test has not failed.
  if code == pytest.ExitCode.NO_TESTS_COLLECTED and os.environ.get(
      'PYTEST_ADDOPTS'):
    code = pytest.ExitCode.OK
  sys.exit(code)
