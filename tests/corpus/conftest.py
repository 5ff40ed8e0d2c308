"""Small packages with message catalogues, in the formats of the registries."""

import io
import json
import pathlib
import tarfile
import zipfile

import polib
import pytest

from gshard_tf.corpus.sources import Source


def gettext_catalogue(entries: list[polib.POEntry], plural_forms: str = '') -> polib.POFile:
  """Makes a gettext catalogue."""
  catalogue = polib.POFile()
  catalogue.metadata = {'Content-Type': 'text/plain; charset=UTF-8', 'Plural-Forms': plural_forms}
  catalogue.extend(entries)
  return catalogue


@pytest.fixture
def gettext_package(tmp_path: pathlib.Path) -> tuple[Source, pathlib.Path]:
  """A wheel with German and French .mo files and a licence, and its row."""
  translations = {
      'de_DE': {'Delete the selected pages': 'Ausgewählte Seiten löschen',
                'Your password was changed': 'Ihr Passwort wurde geändert',
                'Welcome back, %(name)s, to the site': 'Willkommen zurück, %(name)s, auf der Seite',
                'Open the door of the house': ''},
      'fr': {'Delete the selected pages': 'Supprimer les pages sélectionnées',
             'Your password was changed': 'Your password was changed'},
      'en_GB': {'Delete the selected pages': 'Delete the pages selected'},
  }
  cache = tmp_path / 'cache'
  cache.mkdir()
  archive = cache / 'some_package-1.0-py3-none-any.whl'
  with zipfile.ZipFile(archive, 'w') as package:
    for tag, texts in translations.items():
      catalogue = gettext_catalogue([polib.POEntry(msgid=k, msgstr=v) for k, v in texts.items()])
      package.writestr(f'some/locale/{tag}/LC_MESSAGES/django.mo', catalogue.to_binary())
    package.writestr('some_package-1.0.dist-info/licenses/LICENSE', 'Copyright Some One. Do as you like.')
  return Source('some-package', 'pypi', '1.0', 'MIT', 'Some One', 'gettext',
                r'some/locale/(?P<language>[^/]+)/LC_MESSAGES/django\.mo'), archive


@pytest.fixture
def json_package(tmp_path: pathlib.Path) -> tuple[Source, pathlib.Path]:
  """An npm package with English and Czech JSON files in two groups, and its row."""
  files = {
      'package/a/en.json': {'menu': {'open': 'Open a new window'}, 'x': 'Only in the English file'},
      'package/a/cs.json': {'menu': {'open': 'Otevřít nové okno'}, 'y': 'Jenom v českém souboru'},
      'package/b/cs.json': {'menu': {'open': 'Skupina bez angličtiny'}},
  }
  cache = tmp_path / 'cache'
  cache.mkdir(exist_ok=True)
  archive = cache / 'scope-messages-2.0.tgz'
  with tarfile.open(archive, 'w:gz') as package:
    for name, messages in files.items():
      data = json.dumps(messages).encode('utf-8')
      member = tarfile.TarInfo(name)
      member.size = len(data)
      package.addfile(member, io.BytesIO(data))
  return Source('@scope/messages', 'npm', '2.0', 'Apache-2.0', 'Scope', 'json',
                r'package/(?P<group>\w+)/(?P<language>[\w-]+)\.json'), archive
