"""Readers of message catalogues: the bytes of a file in, messages out.

A gettext catalogue carries the English beside the translation and yields pairs. JSON and Blockly files
carry one language each, by key; `pair_by_key` joins a file with its English twin.
"""

import gettext
import json
import re
from collections.abc import Iterator

import polib

_PLURAL_FORMS = re.compile(r'nplurals\s*=\s*(\d+)\s*;\s*plural\s*=\s*(.+?)\s*;?\s*$', re.S)
# JavaScript knows escapes that JSON does not: each stands for the character itself.
_JAVASCRIPT_ESCAPE = re.compile(r'\\(?:(["\\/bfnrtu])|(.))')
_BLOCKLY_MESSAGE = re.compile(r'^Blockly\.Msg\["(\w+)"\] = ("(?:[^"\\]|\\.)*");[ \t]*$', re.M)


def plural_form_of_one(header: str) -> tuple[int, int]:
  """Evaluates a catalogue's plural rule for one thing.

  Args:
    header: the Plural-Forms header, e.g. 'nplurals=2; plural=(n != 1);'.

  Returns:
    The number of forms and the index of the form for n=1.

  Raises:
    ValueError: when the header is not a plural rule.
  """
  match = _PLURAL_FORMS.match(header.strip())
  if not match:
    raise ValueError(f'Plural-Forms "{header[:60]}" is no rule; write "nplurals=N; plural=EXPRESSION;"')
  return int(match[1]), gettext.c2py(match[2])(1)


def _plural_pairs(entry: polib.POEntry, header: str) -> Iterator[tuple[str, str]]:
  """Pairs the form for n=1 with the singular, the others (or an only form) with the plural."""
  forms, one = plural_form_of_one(header)
  for index, text in entry.msgstr_plural.items():
    yield text, entry.msgid if forms > 1 and index == one else entry.msgid_plural


def read_gettext(data: bytes) -> Iterator[tuple[str, str]]:
  """Reads a compiled (.mo) or textual (.po) gettext catalogue whose msgids are English.

  Args:
    data: the bytes of the file.

  Yields:
    Pairs (translation, English); fuzzy, obsolete and empty entries are left out, and so are plurals
    where the catalogue has no usable plural rule.
  """
  compiled = data[:4] in (b'\xde\x12\x04\x95', b'\x95\x04\x12\xde')
  catalogue = polib.mofile(data) if compiled else polib.pofile(data.decode('utf-8'))
  header = catalogue.metadata.get('Plural-Forms', '')
  for entry in catalogue.translated_entries():
    if entry.msgid_plural:
      try:
        pairs = list(_plural_pairs(entry, header))
      except ValueError:
        continue
    else:
      pairs = [(entry.msgstr, entry.msgid)]
    yield from (pair for pair in pairs if all(pair))


def _leaves(node: object, path: str) -> Iterator[tuple[str, str]]:
  if isinstance(node, str):
    yield path, node
  elif isinstance(node, (dict, list)):
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, child in items:
      yield from _leaves(child, f'{path}/{key}')


def _strings(tree: object) -> dict[str, str]:
  """Returns the strings of a JSON tree by key path, without references to others ('[%key:...')."""
  return {path: text for path, text in _leaves(tree, '') if text and not text.startswith('[%key')}


def read_json(data: bytes) -> dict[str, str]:
  """Reads the messages of a JSON catalogue by key path."""
  return _strings(json.loads(data.decode('utf-8-sig')))


def read_json_under_tag(data: bytes) -> dict[str, str]:
  """Reads a JSON catalogue whose messages stand under one key, the language: {"de": {...}}."""
  (tree,) = json.loads(data.decode('utf-8-sig')).values()
  return _strings(tree)


def read_blockly(data: bytes) -> dict[str, str]:
  """Reads the messages of a Blockly language file; those marked untranslated, and aliases, are left out."""
  found = _BLOCKLY_MESSAGE.findall(data.decode('utf-8'))
  return {key: json.loads(_JAVASCRIPT_ESCAPE.sub(lambda m: m[2] or m[0], literal)) for key, literal in found}


def pair_by_key(translated: dict[str, str], english: dict[str, str]) -> Iterator[tuple[str, str]]:
  """Yields (translation, English) for each key that both languages have, in the order of the English."""
  for key, text in english.items():
    if key in translated:
      yield translated[key], text


KEYED_READERS = {'json': read_json, 'json_under_tag': read_json_under_tag, 'blockly': read_blockly}
