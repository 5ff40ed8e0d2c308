"""Cleaning rules, by example and by property."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st
import pytest

from gshard_tf.corpus import cleaning
from gshard_tf.corpus import languages
from gshard_tf.corpus import markup


@pytest.mark.parametrize('raw, plain', [
    ('{n, plural, one {# page} other {# pages}} left', '{n} pages left'),
    ('{g, select, male {his} other {their}} {n, number} books', 'their {n} books'),
    ('{a, plural, one {x} other {{b, plural, one {y} other {# of {c}}}}}', '{b} of {c}'),
    ('no plural {name} here', 'no plural {name} here'),
])
def test_icu_keeps_the_other_branch(raw, plain):
  assert markup.keep_other_branch(raw) == plain


@pytest.mark.parametrize('raw', ['{n, plural, one {x}}', '{n, plural, one {x} other {y}'])
def test_broken_icu_is_refused(raw):
  with pytest.raises(ValueError):
    markup.keep_other_branch(raw)


@pytest.mark.parametrize('raw, plain', [
    ('Save &amp; close', 'Save & close'),
    ('<b>Save</b> the<br/>page', 'Save the page'),
    ('Read the {link}terms{/link}', 'Read the terms'),
    ('Read **the** [manual](https://example.org/a)', 'Read the manual'),
    ('  two\n lines\u200e\xa0here ', 'two lines here'),
    ("l''heure", "l'heure"),
    ('100%% of it', '100% of it'),
    ('* an item', 'an item'),
    ('e\u0301tat', '\u00e9tat'),
])
def test_plain_text(raw, plain):
  assert markup.plain_text(raw) == plain


@pytest.mark.parametrize('raw, mark, plain', [
    ('_File', '_', 'File'), ('Save &As', '&', 'Save As'), ('Salt & pepper', '&', 'Salt & pepper'),
    ('ファイル(_F)', '_', 'ファイル'), ('snake_case', '', 'snake_case')])
def test_accelerators(raw, mark, plain):
  assert markup.strip_accelerator(raw, mark) == plain


@pytest.mark.parametrize('source, english, expected', [
    ('Datei öffnen', 'menu|Open file', ('Datei öffnen', 'Open file')),
    ('verb^Öffnen', 'verb^Open', ('Öffnen', 'Open')),
    ('dies | das', 'this | that', ('dies | das', 'this | that')),
    ('Ja|Nein', 'Yes|No', ('Ja|Nein', 'No'))])
def test_context_prefixes(source, english, expected):
  assert markup.strip_context(source, english) == expected


@pytest.mark.parametrize('source, english, language, expected', [
    ('Gew&auml;hlte <b>Seiten</b>', 'Chosen <b>pages</b>', 'de', ('Gewählte Seiten', 'Chosen pages')),
    ('Seiten löschen', 'menu|Delete pages', 'de', ('Seiten löschen', 'Delete pages')),
    ('Die „Seite“ ist’s', 'It’s the “page”…', 'de', ('Die „Seite“ ist’s', 'It\'s the "page"...')),
    ('{n} сторінок', '{n, plural, one {# page} other {# pages}}', 'uk', ('{n} сторінок', '{n} pages')),
    ('أقل من ٣ أيام', 'Less than 3 days', 'ar', ('أقل من ٣ أيام', 'Less than 3 days')),
])
def test_pairs_that_are_kept(source, english, language, expected):
  assert cleaning.clean_pair(source, english, language) == expected


@pytest.mark.parametrize('reason, source, english, language', [
    ('plural', '{n, plural, one {a}}', 'a page', 'de'),
    ('tags', '<b>Seite löschen', 'Delete the page', 'de'),
    ('no letters', '---', '%s', 'de'),
    ('markup', 'Das <neu> hier', 'The <neu> there', 'de'),
    ('markup', 'Ja|Nein', 'Yes|No', 'de'),
    ('wiki', 'Die [[Seite]] hier', 'The [[page]] here', 'de'),
    ('too long', 'Wort ' * 121, 'word ' * 121, 'de'),
    ('placeholders', 'Hallo %(nom)s', 'Hello %(name)s', 'de'),
    ('placeholders', 'Hallo du', 'Hello {name}', 'de'),
    ('identifier', 'Die Option --force setzen', 'Set option --force', 'de'),
    ('identifier', 'Feld user_name fehlt', 'Missing user_name', 'de'),
    ('identifier', 'Siehe https://example.org', 'See https://example.org', 'de'),
    ('untranslated', 'Delete the page', 'Delete the page', 'de'),
    ('untranslated', 'Delete the Seite', 'Delete the page', 'de'),
    ('script', 'Ippati peji tholaginchu', 'Delete this page', 'te'),
    ('script', 'Сохранить страницу', 'Save the page', 'pl'),
    ('English not ASCII', 'Seite löschen', 'Удалить страницу', 'de'),
    ('numbers', 'Noch 30 Tage', 'Another 14 days', 'de'),
    ('length ratio', 'Ja', 'Yes, delete the selected pages', 'de'),
    ('length ratio', '是', 'Delete the page', 'zh-Hans'),
    ('question', 'Möchten Sie die Seite löschen?', 'Delete the selected page', 'de'),
])
def test_pairs_that_are_dropped(reason, source, english, language):
  with pytest.raises(cleaning.Rejected) as rejected:
    cleaning.clean_pair(source, english, language)
  assert str(rejected.value) == reason
  assert reason in cleaning.REASONS


# Texts that are mostly words, with pieces of markup strewn in.
_PIECES = st.one_of(
    st.sampled_from(['<b>', '</b>', '&amp;', '&amp;lt;', '**', '`', '{name}', '%s', '%(x)d', "''", '%%', '|',
                     '^', '{n, plural, other {# x}}', '\u200b', '\n', '\t', '[a](b)', '{', '}', '5', '#', '?']),
    st.sampled_from(['open', 'the', 'window', 'Fenster', 'öffnen', 'e\u0301', 'das', 'neue', 'ページ']))
_TEXTS = st.lists(_PIECES, min_size=1, max_size=10).flatmap(
    lambda pieces: st.sampled_from([' ', '']).map(lambda gap: gap.join(pieces)))


@given(_TEXTS | st.text())
def test_plain_text_is_one_normalised_line_and_final(text):
  plain = markup.plain_text(text)
  assert plain == ' '.join(plain.split())
  assert unicodedata.is_normalized('NFC', plain)
  assert markup.plain_text(plain) == plain


@given(_TEXTS, _TEXTS, st.sampled_from(['de', 'ja', 'ru']))
def test_a_kept_pair_is_clean_and_stays_as_it_is(source, english, language):
  try:
    kept = cleaning.clean_pair(source, english, language)
  except cleaning.Rejected as rejected:
    assert str(rejected) in cleaning.REASONS
    return
  assert cleaning.clean_pair(*kept, language) == kept
  for side in kept:
    assert side and '\t' not in side and '\n' not in side and '<b>' not in side
  assert markup.count_placeholders(kept[0]) == markup.count_placeholders(kept[1])


@given(st.from_regex(r'[a-z]+( [a-z]+){1,5}', fullmatch=True), st.sampled_from(['de', 'fr', 'ru']))
def test_an_untranslated_message_is_always_dropped(text, language):
  with pytest.raises(cleaning.Rejected, match='untranslated'):
    cleaning.clean_pair(text.upper(), text, language)


@pytest.mark.parametrize('tag, expected', [
    ('no', 'nb'), ('iw', 'he'), ('in', 'id'), ('kmr', 'ku'), ('sr@latin', 'sr-Latn'), ('sr_Latn', 'sr-Latn'),
    ('sr', 'sr'), ('zh_CN', 'zh-Hans'), ('zh-tw', 'zh-Hant'), ('zh_Hans_CN', 'zh-Hans'), ('zh', 'zh-Hans'),
    ('zh_HK', 'zh-Hant'), ('pt_BR', 'pt'), ('es-419', 'es'), ('de_DE', 'de'), ('ja-Hira', 'ja-Hira'),
    ('uz@cyrillic', 'uz-Cyrl'), ('tl', 'fil'), ('en_GB', None), ('qqq', None), ('tlh', None), ('ach_UG', None),
    ('x-test', None), ('ar_XB', None), ('', None)])
def test_language_tags_have_one_spelling(tag, expected):
  assert languages.normalise_tag(tag) == expected


@pytest.mark.parametrize('tag', languages.LANGUAGES)
def test_known_tags_are_normalised_and_have_scripts(tag):
  assert languages.normalise_tag(tag) == tag
  assert languages.english_name(tag) != tag
  assert languages.scripts(tag)


def test_an_unknown_language_gets_a_suggestion():
  with pytest.raises(ValueError, match='did you mean "nb"'):
    languages.check_known('nbb')


@pytest.mark.parametrize('text, tag, share', [
    ('Привет abc', 'ru', 6 / 9), ('ページ', 'ja', 1.0), ('abc', 'te', 0.0), ('abc', 'xyz', 1.0),
    ('12', 'ru', 1.0)])
def test_script_share(text, tag, share):
  assert languages.script_share(text, tag) == pytest.approx(share)
