"""Language tags: one spelling for each language, its English name and its scripts."""

import difflib
import functools
import re
import unicodedata

# Tags that catalogues use for one and the same language, by the part before the first hyphen.
_ALIASES = {'no': 'nb', 'iw': 'he', 'in': 'id', 'ji': 'yi', 'kmr': 'ku', 'tl': 'fil',
            'cmn': 'zh', 'mo': 'ro', 'sh': 'sr-Latn'}

# Message documentation (qqq), pseudo-locales of translation tools (ach is Crowdin's), private use, jokes.
_NOT_TRANSLATIONS = frozenset(['en', 'qqq', 'ach', 'test', 'template', 'x', 'art', 'mis', 'mul', 'und',
                               'tlh', 'lol', 'ar-xb', 'en-xa'])

_SCRIPT_OF_REGION = {('zh', 'tw'): 'Hant', ('zh', 'hk'): 'Hant', ('zh', 'mo'): 'Hant'}

_SCRIPT_NAMES = {'latin': 'Latn', 'cyrillic': 'Cyrl', 'arabic': 'Arab', 'devanagari': 'Deva'}

# The script that goes without saying; `zh` always says its own.
_DEFAULT_SCRIPTS = {'sr': 'Cyrl', 'ku': 'Latn', 'ug': 'Arab', 'uz': 'Latn', 'az': 'Latn', 'be': 'Cyrl',
                    'bs': 'Latn', 'kk': 'Cyrl', 'mn': 'Cyrl', 'pa': 'Guru', 'tt': 'Cyrl', 'ks': 'Arab',
                    'tg': 'Cyrl', 'hi': 'Deva', 'ja': 'Jpan', 'ko': 'Kore', 'ha': 'Latn', 'skr': 'Arab'}

_SCRIPTS_OF_SUBTAG = {'Latn': 'LATIN', 'Cyrl': 'CYRILLIC', 'Arab': 'ARABIC', 'Deva': 'DEVANAGARI',
                      'Hira': 'HIRAGANA KATAKANA', 'Hans': 'CJK', 'Hant': 'CJK', 'Mtei': 'MEETEI'}

# tag: (English name, scripts as the first word of their letters' Unicode names).
LANGUAGES = {
    'af': ('Afrikaans', 'LATIN'), 'am': ('Amharic', 'ETHIOPIC'), 'ar': ('Arabic', 'ARABIC'),
    'as': ('Assamese', 'BENGALI'), 'ast': ('Asturian', 'LATIN'), 'az': ('Azerbaijani', 'LATIN'),
    'be': ('Belarusian', 'CYRILLIC'), 'bg': ('Bulgarian', 'CYRILLIC'), 'bn': ('Bengali', 'BENGALI'),
    'br': ('Breton', 'LATIN'), 'bs': ('Bosnian', 'LATIN'), 'ca': ('Catalan', 'LATIN'),
    'ckb': ('Central Kurdish', 'ARABIC'), 'cs': ('Czech', 'LATIN'), 'cy': ('Welsh', 'LATIN'),
    'da': ('Danish', 'LATIN'), 'de': ('German', 'LATIN'), 'dsb': ('Lower Sorbian', 'LATIN'),
    'el': ('Greek', 'GREEK'), 'eo': ('Esperanto', 'LATIN'), 'es': ('Spanish', 'LATIN'),
    'et': ('Estonian', 'LATIN'), 'eu': ('Basque', 'LATIN'), 'fa': ('Persian', 'ARABIC'),
    'fi': ('Finnish', 'LATIN'), 'fil': ('Filipino', 'LATIN'), 'fr': ('French', 'LATIN'),
    'fy': ('Western Frisian', 'LATIN'), 'ga': ('Irish', 'LATIN'), 'gd': ('Scottish Gaelic', 'LATIN'),
    'gl': ('Galician', 'LATIN'), 'gu': ('Gujarati', 'GUJARATI'), 'ha': ('Hausa', 'LATIN'),
    'he': ('Hebrew', 'HEBREW'), 'hi': ('Hindi', 'DEVANAGARI'), 'hr': ('Croatian', 'LATIN'),
    'hsb': ('Upper Sorbian', 'LATIN'), 'ht': ('Haitian Creole', 'LATIN'), 'hu': ('Hungarian', 'LATIN'),
    'hy': ('Armenian', 'ARMENIAN'), 'ia': ('Interlingua', 'LATIN'), 'id': ('Indonesian', 'LATIN'),
    'ig': ('Igbo', 'LATIN'), 'io': ('Ido', 'LATIN'), 'is': ('Icelandic', 'LATIN'),
    'it': ('Italian', 'LATIN'), 'ja': ('Japanese', 'CJK HIRAGANA KATAKANA'), 'jv': ('Javanese', 'LATIN'),
    'ka': ('Georgian', 'GEORGIAN'), 'kab': ('Kabyle', 'LATIN'), 'kk': ('Kazakh', 'CYRILLIC'),
    'km': ('Khmer', 'KHMER'), 'kn': ('Kannada', 'KANNADA'), 'ko': ('Korean', 'HANGUL CJK'),
    'ku': ('Kurdish', 'LATIN'), 'ky': ('Kyrgyz', 'CYRILLIC'), 'la': ('Latin', 'LATIN'),
    'lb': ('Luxembourgish', 'LATIN'), 'lo': ('Lao', 'LAO'), 'lt': ('Lithuanian', 'LATIN'),
    'lv': ('Latvian', 'LATIN'), 'mg': ('Malagasy', 'LATIN'), 'mi': ('Maori', 'LATIN'),
    'mk': ('Macedonian', 'CYRILLIC'), 'ml': ('Malayalam', 'MALAYALAM'), 'mn': ('Mongolian', 'CYRILLIC'),
    'mr': ('Marathi', 'DEVANAGARI'), 'ms': ('Malay', 'LATIN'), 'mt': ('Maltese', 'LATIN'),
    'my': ('Burmese', 'MYANMAR'), 'nb': ('Norwegian Bokmål', 'LATIN'), 'ne': ('Nepali', 'DEVANAGARI'),
    'nl': ('Dutch', 'LATIN'), 'nn': ('Norwegian Nynorsk', 'LATIN'), 'ny': ('Chichewa', 'LATIN'),
    'oc': ('Occitan', 'LATIN'), 'or': ('Odia', 'ORIYA'), 'os': ('Ossetian', 'CYRILLIC'),
    'pa': ('Punjabi', 'GURMUKHI'), 'pl': ('Polish', 'LATIN'), 'ps': ('Pashto', 'ARABIC'),
    'pt': ('Portuguese', 'LATIN'), 'ro': ('Romanian', 'LATIN'), 'ru': ('Russian', 'CYRILLIC'),
    'sd': ('Sindhi', 'ARABIC'), 'si': ('Sinhala', 'SINHALA'), 'sk': ('Slovak', 'LATIN'),
    'sl': ('Slovenian', 'LATIN'), 'sq': ('Albanian', 'LATIN'), 'sr': ('Serbian', 'CYRILLIC'),
    'sr-Latn': ('Serbian in Latin script', 'LATIN'), 'sv': ('Swedish', 'LATIN'),
    'sw': ('Swahili', 'LATIN'), 'ta': ('Tamil', 'TAMIL'), 'te': ('Telugu', 'TELUGU'),
    'tg': ('Tajik', 'CYRILLIC'), 'th': ('Thai', 'THAI'), 'ti': ('Tigrinya', 'ETHIOPIC'),
    'tk': ('Turkmen', 'LATIN'), 'tr': ('Turkish', 'LATIN'), 'tt': ('Tatar', 'CYRILLIC'),
    'ug': ('Uyghur', 'ARABIC'), 'uk': ('Ukrainian', 'CYRILLIC'), 'ur': ('Urdu', 'ARABIC'),
    'uz': ('Uzbek', 'LATIN'), 'vi': ('Vietnamese', 'LATIN'), 'xh': ('Xhosa', 'LATIN'),
    'yi': ('Yiddish', 'HEBREW'), 'yo': ('Yoruba', 'LATIN'), 'zh-Hans': ('Simplified Chinese', 'CJK'),
    'zh-Hant': ('Traditional Chinese', 'CJK'), 'zu': ('Zulu', 'LATIN'),
}


def normalise_tag(tag: str) -> str | None:
  """Spells a language tag in one way: language, and script where it is not the usual one.

  Regions and variants are dropped: translating from pt-BR and from pt is one task here.

  Args:
    tag: a tag as catalogues write it, e.g. 'pt_BR', 'sr@latin', 'zh-cn', 'no'.

  Returns:
    The tag, e.g. 'pt', 'sr-Latn', 'zh-Hans', 'nb'; None for English and for what is no translation.
  """
  subtags = re.split(r'[-_@.]', tag.strip())
  language = _ALIASES.get(subtags[0].lower(), subtags[0].lower())
  if language in _NOT_TRANSLATIONS or tag.lower().replace('_', '-') in _NOT_TRANSLATIONS:
    return None
  if not re.fullmatch(r'[a-z]{2,3}(-Latn)?', language):
    return None
  script = None
  for subtag in subtags[1:]:
    if subtag.lower() in _SCRIPT_NAMES:
      script = _SCRIPT_NAMES[subtag.lower()]
    elif re.fullmatch(r'[A-Za-z]{4}', subtag):
      script = subtag.capitalize()
    elif (language, subtag.lower()) in _SCRIPT_OF_REGION and not script:
      script = _SCRIPT_OF_REGION[language, subtag.lower()]
  if language == 'zh':
    script = script or 'Hans'
  if script is None or script == _DEFAULT_SCRIPTS.get(language):
    return language
  return f'{language}-{script}'


def english_name(tag: str) -> str:
  """Returns the English name of a normalised tag, or the tag itself where the table lacks it."""
  return LANGUAGES[tag][0] if tag in LANGUAGES else tag


def check_known(tag: str) -> str:
  """Returns the tag when the table has it.

  Args:
    tag: a normalised language tag.

  Raises:
    ValueError: when the table has no such language; names the nearest tag.
  """
  if tag in LANGUAGES:
    return tag
  near = difflib.get_close_matches(tag, LANGUAGES, n=1, cutoff=0.3)
  hint = f'did you mean "{near[0]}"?' if near else 'see gshard_tf/corpus/languages.py'
  raise ValueError(f'unknown language "{tag}" ({len(LANGUAGES)} known); {hint}')


def scripts(tag: str) -> frozenset[str]:
  """Returns the scripts a language is written in, empty where they are not known."""
  if tag in LANGUAGES:
    return frozenset(LANGUAGES[tag][1].split())
  language, _, script = tag.partition('-')
  if script:
    return frozenset(_SCRIPTS_OF_SUBTAG.get(script, '').split())
  return scripts(language) if language != tag else frozenset()


@functools.lru_cache(maxsize=None)
def _script_of(letter: str) -> str:
  return unicodedata.name(letter, 'UNNAMED').split()[0]


def script_share(text: str, tag: str) -> float:
  """Measures how much of a text is written in a script of its language.

  Args:
    text: any text.
    tag: a normalised language tag.

  Returns:
    The share of letters in the language's scripts, 1.0 where the scripts are not known.
  """
  expected = scripts(tag)
  # Modifier letters (the long mark of kana, the apostrophe of Ukrainian) belong to several scripts.
  letters = [c for c in text if c.isalpha() and unicodedata.category(c) != 'Lm']
  if not expected or not letters:
    return 1.0
  return sum(_script_of(c) in expected for c in letters) / len(letters)
