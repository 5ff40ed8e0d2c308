"""Readers of message catalogues, and packages read in place."""

import collections
import dataclasses

import polib
import pytest

from gshard_tf.corpus import archives
from gshard_tf.corpus import catalogues
from gshard_tf.corpus import extraction
from tests.corpus.conftest import gettext_catalogue

_RUSSIAN = ('nplurals=3; plural=(n%10==1 && n%100!=11 ? 0 : n%10>=2 && n%10<=4 && '
            '(n%100<12 || n%100>14) ? 1 : 2);')


@pytest.mark.parametrize('header, forms, one', [
    ('nplurals=2; plural=(n != 1);', 2, 0),
    ('nplurals=2; plural=n > 1', 2, 0),
    ('nplurals=1; plural=0;', 1, 0),
    (_RUSSIAN, 3, 0),
    ('nplurals=6; plural=n==0 ? 0 : n==1 ? 1 : n==2 ? 2 : n%100>=3 && n%100<=10 ? 3 : 4;', 6, 1),
])
def test_the_plural_rule_is_evaluated_for_one(header, forms, one):
  assert catalogues.plural_form_of_one(header) == (forms, one)


@pytest.mark.parametrize('header', [
    '', 'nplurals=INTEGER; plural=EXPRESSION;', 'nplurals=2; plural=__import__;'])
def test_a_header_that_is_no_rule_is_refused(header):
  with pytest.raises(ValueError):
    catalogues.plural_form_of_one(header)


def _plural(*forms):
  return polib.POEntry(msgid='one page', msgid_plural='many pages', msgstr_plural=dict(enumerate(forms)))


@pytest.mark.parametrize('compiled', [True, False])
def test_plural_forms_pair_with_singular_and_plural(compiled):
  catalogue = gettext_catalogue([_plural('одна страница', 'две страницы', 'пять страниц')], _RUSSIAN)
  data = catalogue.to_binary() if compiled else str(catalogue).encode('utf-8')
  assert list(catalogues.read_gettext(data)) == [
      ('одна страница', 'one page'), ('две страницы', 'many pages'), ('пять страниц', 'many pages')]


def test_the_only_form_of_a_language_without_plurals_is_the_plural():
  data = gettext_catalogue([_plural('ページ')], 'nplurals=1; plural=0;').to_binary()
  assert list(catalogues.read_gettext(data)) == [('ページ', 'many pages')]


def test_plurals_without_a_rule_are_left_out():
  entries = [_plural('Seite', 'Seiten'), polib.POEntry(msgid='Open', msgstr='Öffnen')]
  data = gettext_catalogue(entries).to_binary()
  assert list(catalogues.read_gettext(data)) == [('Öffnen', 'Open')]


def test_fuzzy_obsolete_and_empty_entries_are_no_translations():
  entries = [polib.POEntry(msgid='Open', msgstr='Öffnen'),
             polib.POEntry(msgid='Close', msgstr='Offen', flags=['fuzzy']),
             polib.POEntry(msgid='Leave', msgstr='Gehen', obsolete=True),
             polib.POEntry(msgid='Save', msgstr='')]
  data = str(gettext_catalogue(entries)).encode('utf-8')
  assert list(catalogues.read_gettext(data)) == [('Öffnen', 'Open')]


def test_json_is_read_by_key_path():
  data = '{"a": {"b": "Eins", "c": ["Zwei", 3]}, "d": "[%key:other%]", "e": ""}'.encode('utf-8')
  assert catalogues.read_json(data) == {'/a/b': 'Eins', '/a/c/0': 'Zwei'}


def test_json_under_the_language_is_read_below_it():
  assert catalogues.read_json_under_tag(b'{"de": {"a": {"b": "Eins"}}}') == {'/a/b': 'Eins'}


def test_blockly_leaves_out_aliases_and_what_is_untranslated():
  data = r'''
Blockly.Msg["ONE"] = "Zeile \"eins\"\nund \'zwei\' \\x";
Blockly.Msg["TWO"] = "Close";  // untranslated
Blockly.Msg["THREE"] = Blockly.Msg["ONE"];
'''.encode('utf-8')
  assert catalogues.read_blockly(data) == {'ONE': 'Zeile "eins"\nund \'zwei\' \\x'}


def test_a_gettext_package_gives_clean_pairs(gettext_package):
  dropped = collections.Counter()
  pairs = list(extraction.clean_pairs(*gettext_package, extraction.Wanted(placeholders=False), dropped))
  assert {(p.language, p.source, p.english, p.package) for p in pairs} == {
      ('de', 'Ausgewählte Seiten löschen', 'Delete the selected pages', 'some-package'),
      ('de', 'Ihr Passwort wurde geändert', 'Your password was changed', 'some-package'),
      ('fr', 'Supprimer les pages sélectionnées', 'Delete the selected pages', 'some-package')}
  assert dropped == {'untranslated': 1, 'has placeholder': 1}


def test_a_json_package_pairs_by_key_within_a_group(json_package):
  assert list(extraction.raw_messages(*json_package)) == [('cs', 'Otevřít nové okno', 'Open a new window')]


@pytest.mark.parametrize('limits, reason', [
    ({'min_words': 4}, 'too few words'), ({'max_words': 2}, 'too many words'), ({}, '')])
def test_wanted_counts_english_words(limits, reason):
  assert extraction.Wanted(**limits).reason_against('Open %(n)s new windows') == reason


def test_a_package_in_the_cache_is_not_downloaded(gettext_package, json_package):
  for source, archive in (gettext_package, json_package):
    assert archives.download(source, archive.parent) == archive


def test_a_failed_download_says_what_to_do(gettext_package, monkeypatch):
  source, archive = gettext_package
  monkeypatch.setattr(archives.sys, 'executable', str(archive.parent / 'no-such-program'))
  with pytest.raises(archives.DownloadError, match=r'some-package 1\.1 \(no such program\); put its archive'):
    archives.download(dataclasses.replace(source, version='1.1'), archive.parent)


def test_the_licence_comes_from_the_package_or_is_the_standard_text(gettext_package, json_package):
  assert archives.licence_text(*gettext_package) == 'Copyright Some One. Do as you like.'
  assert 'Apache License' in archives.licence_text(*json_package)
  source, archive = json_package
  with pytest.raises(ValueError, match='carries no licence text; add ISC.txt'):
    archives.licence_text(dataclasses.replace(source, licence='ISC'), archive)
