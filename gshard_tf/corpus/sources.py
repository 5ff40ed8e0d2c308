"""The table of packages whose message catalogues make the corpus.

A new package is a row here; a new format is a reader in `catalogues.py`. Rows stand in order of
preference: where two packages translate the same English sentence, a sample takes the earlier one's.
"""

import dataclasses
import difflib

PERMISSIVE = frozenset(['MIT', 'ISC', 'BSD-2-Clause', 'BSD-3-Clause', 'Apache-2.0'])


@dataclasses.dataclass(frozen=True)
class Source:
  """One package of one version.

  Attributes:
    name: the package's name in its registry.
    registry: 'pypi' or 'npm'.
    version: the pinned version.
    licence: SPDX identifier of the licence of its strings.
    holder: the copyright holder, for the notice.
    reader: 'gettext', or a key of `catalogues.KEYED_READERS`.
    pattern: regular expression of the catalogues' paths in the archive, with a group `language` and,
      where a language has several files, a group `group`.
    english: the tag of the English files of a keyed format, as their paths spell it.
    accelerator: the mark before the key letter of menu entries, '' for none.
  """
  name: str
  registry: str
  version: str
  licence: str
  holder: str
  reader: str
  pattern: str
  english: str = 'en'
  accelerator: str = ''

  @property
  def permissive(self) -> bool:
    """Whether the strings may be passed on with a notice alone."""
    return self.licence in PERMISSIVE


_GETTEXT = r'/(?P<language>[^/]+)/LC_MESSAGES/(?P<group>[^/]+)\.mo'
_JSON = r'/(?P<language>[^/]+)\.json'

SOURCES = (
    Source('kolibri', 'pypi', '0.19.5', 'MIT', 'Learning Equality and other contributors', 'json',
           r'kolibri/locale/(?P<language>[^/]+)/LC_MESSAGES/(?P<group>[^/]+)-messages\.json'),
    Source('scratch-l10n', 'npm', '4.0.31', 'BSD-3-Clause',  # Later versions are under the AGPL.
           'Massachusetts Institute of Technology', 'json', r'package/(?P<group>(?:www|editor)/[^/]+)' + _JSON),
    Source('wagtail', 'pypi', '8.0.1', 'BSD-3-Clause', 'Torchbox Ltd and individual contributors',
           'gettext', r'wagtail/.+/locale' + _GETTEXT),
    Source('django', 'pypi', '6.1.3', 'BSD-3-Clause',
           'Django Software Foundation and individual contributors', 'gettext', r'django/.+/locale' + _GETTEXT),
    Source('django-allauth', 'pypi', '65.21.1', 'MIT', 'Raymond Penners and contributors', 'gettext',
           r'allauth/locale' + _GETTEXT),
    Source('djangorestframework', 'pypi', '3.18.3', 'BSD-3-Clause', 'Encode OSS Ltd', 'gettext',
           r'rest_framework/locale' + _GETTEXT),
    Source('indico', 'pypi', '3.3.14', 'MIT', 'CERN', 'gettext', r'indico/translations' + _GETTEXT),
    Source('blockly', 'npm', '12.5.1', 'Apache-2.0', 'Google LLC and the Blockly translators', 'blockly',
           r'package/msg/(?P<language>[^/]+)\.js'),
    Source('sphinx', 'pypi', '9.2.0', 'BSD-2-Clause', 'the Sphinx team', 'gettext',
           r'sphinx/locale' + _GETTEXT),
    Source('oojs-ui', 'npm', '0.54.2', 'MIT', 'OOUI Team and other contributors', 'json',
           r'package/dist/i18n' + _JSON),
    Source('pywikibot-scripts', 'pypi', '11.9.0', 'MIT', 'the Pywikibot team', 'json',
           r'pywikibot_scripts/i18n/(?P<group>[^/]+)' + _JSON),
    Source('matrix-react-sdk', 'npm', '3.82.0', 'Apache-2.0',  # Later versions are under the AGPL.
           'the Matrix.org Foundation C.I.C. and contributors', 'json', r'package/src/i18n/strings' + _JSON,
           english='en_EN'),
    Source('@openstreetmap/id', 'npm', '2.42.2', 'ISC', 'the iD contributors', 'json_under_tag',
           r'package/dist/locales/(?P<language>[^/]+)\.min\.json'),
    Source('homeassistant', 'pypi', '2026.11.0', 'Apache-2.0', 'the Home Assistant authors', 'json',
           r'homeassistant/components/(?P<group>[^/]+)/translations' + _JSON),
    Source('home-assistant-frontend', 'pypi', '20261028.8', 'Apache-2.0', 'the Home Assistant authors', 'json',
           r'hass_frontend/static/translations/(?:(?P<group>[^/]+)/)?(?P<language>[\w-]+)-[0-9a-f]{32}\.json'),
    Source('gramps', 'pypi', '6.0.8', 'GPL-2.0-or-later', 'the Gramps developers', 'gettext',
           r'.+/share/locale' + _GETTEXT, accelerator='_'),
    Source('weblate', 'pypi', '2026.10.1', 'GPL-3.0-or-later', 'Michal Čihař and contributors', 'gettext',
           r'weblate/locale' + _GETTEXT),
    Source('pretix', 'pypi', '2026.8.0', 'AGPL-3.0-only', 'rami.io GmbH and contributors', 'gettext',
           r'pretix/locale' + _GETTEXT),
    Source('mayan-edms', 'pypi', '4.12.2', 'GPL-2.0-only', 'Roberto Rosario and contributors', 'gettext',
           r'mayan/apps/.+/locale' + _GETTEXT),
    Source('deluge', 'pypi', '2.2.0', 'GPL-3.0-or-later', 'the Deluge team', 'gettext',
           r'deluge/i18n' + _GETTEXT, accelerator='_'),
    Source('askbot', 'pypi', '0.13.0', 'GPL-3.0-or-later', 'the Askbot developers', 'gettext',
           r'askbot/locale' + _GETTEXT),
    Source('ckan', 'pypi', '2.12.0', 'AGPL-3.0-or-later', 'the CKAN contributors', 'gettext',
           r'ckan/i18n' + _GETTEXT),
    Source('mercurial', 'pypi', '7.2.4', 'GPL-2.0-or-later', 'Olivia Mackall and others', 'gettext',
           r'mercurial/locale' + _GETTEXT),
    Source('pretalx', 'pypi', '2026.2.1', 'AGPL-3.0-only', 'Tobias Kunze and contributors', 'gettext',
           r'pretalx/locale' + _GETTEXT),
    Source('calibreweb', 'pypi', '0.6.27', 'GPL-3.0-or-later', 'the Calibre-Web developers', 'gettext',
           r'calibreweb/cps/translations' + _GETTEXT),
    Source('mailman', 'pypi', '3.3.10', 'GPL-3.0-or-later', 'the Free Software Foundation, Inc.', 'gettext',
           r'mailman/messages' + _GETTEXT),
    Source('duplicity', 'pypi', '3.2.1', 'GPL-2.0-or-later', 'the duplicity developers', 'gettext',
           r'.+/share/locale' + _GETTEXT),
    Source('pycountry', 'pypi', '26.2.16', 'LGPL-2.1-only', 'the iso-codes and pycountry developers',
           'gettext', r'pycountry/locales/(?P<language>[^/]+)/LC_MESSAGES/'
           r'(?P<group>iso3166-1|iso4217|iso639-3|iso15924)\.mo'),
)

# What the sample in data/ is made of: short messages of everyday words in many languages.
SAMPLE = ('kolibri', 'scratch-l10n', 'wagtail', 'django', 'django-allauth', 'djangorestframework', 'indico',
          'blockly', 'sphinx')


def choose(names: str, licences: str = 'permissive') -> tuple[Source, ...]:
  """Chooses packages by name and licence.

  Args:
    names: comma-separated names of packages, or 'all'.
    licences: 'permissive' for packages whose strings may be passed on with a notice, or 'all'.

  Returns:
    Their rows, in the order of the table.

  Raises:
    ValueError: for a name that the table lacks, or when nothing is chosen.
  """
  wanted = [name.strip() for name in names.split(',')]
  known = [source.name for source in SOURCES]
  for name in wanted:
    if name not in known + ['all']:
      near = difflib.get_close_matches(name, known, n=1, cutoff=0)
      raise ValueError(f'unknown package "{name}" ({len(known)} known); did you mean "{near[0]}"?')
  chosen = tuple(source for source in SOURCES if source.name in wanted or 'all' in wanted)
  allowed = tuple(source for source in chosen if source.permissive or licences == 'all')
  if not allowed:
    raise ValueError(f'0 of {len(chosen)} packages have a permissive licence; set --licences=all')
  return allowed
