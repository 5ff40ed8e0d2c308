"""The made-up corpus, once a session."""

import pytest

from tests.input import languages


@pytest.fixture(scope='session')
def world(tmp_path_factory):
  return languages.make_world(tmp_path_factory.mktemp('world'))
