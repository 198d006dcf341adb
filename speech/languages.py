"""Languages as people name them: codes, tags and names, read by one function wherever a language is a field."""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache
from typing import Final

import langcodes
from langcodes.tag_parser import LanguageTagError
from rapidfuzz import fuzz, process

from duet.errors import InvalidRequest

UNDETERMINED: Final = "und"
"""ISO 639's code of a language that nobody knows: what answers say where a string is needed and nothing was said."""
MAX_CHARACTERS: Final = 64
_DETECTED: Final = frozenset({"", "auto", "autodetect", "detect", "none", "null", "und", "mul", "自动", "自动检测"})
_SAME: Final = {"fil": "tl", **dict.fromkeys(("cdo", "cjy", "gan", "hak", "hsn", "mnp", "nan", "wuu"), "zh")}
"""Recognisers have one Filipino, and write the Chinese languages other than Cantonese as Chinese."""
_VARIANT: Final = re.compile(
    r"\(.*\)$|^(?:american|brazilian|british|european|mandarin|simplified|standard|traditional)\s+(?=\w)"
)
"""What people add to a name: "Chinese (Simplified)", "Brazilian Portuguese"."""

# The languages that recognisers know, and others that people ask for: the code, then names in English and in the language
# itself. Codes are those of ISO 639-1, or of 639-3 where there is none.
_TABLE: Final = """
af Afrikaans | am Amharic | ar Arabic العربية | as Assamese | az Azerbaijani | ba Bashkir | be Belarusian беларуская
bg Bulgarian български | bn Bengali Bangla বাংলা | bo Tibetan | br Breton | bs Bosnian bosanski | ca Catalan Valencian català
cs Czech čeština | cy Welsh Cymraeg | da Danish dansk | de German Deutsch | el Greek Ελληνικά
en English 英文 英语 英語 | eo Esperanto | es Spanish Castilian español 西班牙语 | et Estonian eesti | eu Basque euskara
fa Persian Farsi فارسی | fi Finnish suomi | fo Faroese | fr French français 法文 法语 法語 | ga Irish Gaeilge | gl Galician galego
gu Gujarati ગુજરાતી | ha Hausa | haw Hawaiian | he Hebrew עברית | hi Hindi हिन्दी | hr Croatian hrvatski | ht Haitian
hu Hungarian magyar | hy Armenian հայերեն | id Indonesian | is Icelandic | it Italian italiano
ja Japanese 日文 日语 日語 日本語 | jv Javanese | ka Georgian ქართული | kk Kazakh | km Khmer ខ្មែរ | kn Kannada ಕನ್ನಡ
ko Korean 韩文 韩语 韓語 한국어 | la Latin | lb Luxembourgish | ln Lingala | lo Lao ລາວ | lt Lithuanian lietuvių
lv Latvian latviešu | mg Malagasy | mi Maori | mk Macedonian македонски | ml Malayalam മലയാളം | mn Mongolian монгол
mr Marathi मराठी | ms Malay Melayu | mt Maltese Malti | my Burmese Myanmar မြန်မာ | ne Nepali नेपाली | nl Dutch Flemish Nederlands
nn Nynorsk | no Norwegian norsk | oc Occitan | pa Punjabi Panjabi ਪੰਜਾਬੀ | pl Polish polski | ps Pashto Pushto
pt Portuguese português 葡萄牙语
ro Romanian Moldavian Moldovan română | ru Russian русский 俄文 俄语 俄語 | sa Sanskrit | sd Sindhi | si Sinhala Sinhalese සිංහල
sk Slovak slovenčina | sl Slovenian Slovene slovenščina | sn Shona | so Somali | sq Albanian shqip | sr Serbian српски
su Sundanese | sv Swedish svenska | sw Swahili Kiswahili | ta Tamil தமிழ் | te Telugu తెలుగు | tg Tajik | th Thai ไทย
tk Turkmen | tl Filipino Tagalog Pilipino | tr Turkish Türkçe | tt Tatar | uk Ukrainian українська | ur Urdu اردو
uz Uzbek | vi Vietnamese | yi Yiddish | yo Yoruba | yue Cantonese 粤语 粵語 广东话 廣東話 | zu Zulu
zh Chinese Mandarin Putonghua 中文 简体中文 繁体中文 繁體中文 汉语 漢語 国语 國語 普通话 普通話 华语 華語
"""


def language_of(given: str | None, *, param: str = "language") -> str | None:
    """The code that Duet uses for a language (`zh`, `en`, `yue`); None where the recogniser is to detect it.

    Takes codes of ISO 639-1, -2 and -3, tags with script and region (`zh-CN`, `zh_Hans`, `yue-HK`, `en_US.UTF-8`) and names
    ("Chinese", "english", "中文"). Raises `InvalidRequest` that names `param` and the nearest language for anything else.
    """
    text = unicodedata.normalize("NFKC", given or "").strip().casefold()
    if text in _DETECTED:
        return None
    code = _code(text) if len(text) <= MAX_CHARACTERS else None
    if code is None:
        shown = "".join(char if char.isprintable() else "?" for char in text[:32])
        raise InvalidRequest(
            f"language {shown!r} is not known: the nearest is {_nearest(text[:MAX_CHARACTERS])}. Send a code (zh, en, yue), "
            "a tag (zh-CN), an English name, or auto",
            param=param,
        )
    return None if code in _DETECTED else code


def heard(said: object) -> str | None:
    """What a recogniser calls the language that it heard, as our code; None for what is no language."""
    try:
        return language_of(said) if isinstance(said, str) else None
    except InvalidRequest:
        return None


@lru_cache(maxsize=512)
def _code(text: str) -> str | None:
    name = _VARIANT.sub("", text).strip()
    if name in _names():
        return _names()[name]
    tag = re.split("[.@]", text)[0].replace("_", "-")  # zh_CN.UTF-8 is a locale of POSIX
    try:
        language = langcodes.Language.get(langcodes.standardize_tag(tag, macro=True)) if tag.isascii() else None
    except LanguageTagError:
        return None
    code = language.language if language else None
    # Codes from qaa to qtz and the tag x- are for private use.
    if language is None or code is None or not langcodes.tag_is_valid(code):
        return None
    if code.startswith("x-") or "qaa" <= code <= "qtz":
        return None
    return _SAME.get(code, code)


@cache
def _names() -> dict[str, str]:
    """Codes by name in lower case."""
    rows = (row.split() for row in re.split(r"[|\n]", _TABLE) if row.strip())
    return {unicodedata.normalize("NFKC", name).casefold(): code for code, *names in rows for name in names}


def _nearest(text: str) -> str:
    """The language whose code or name is most like `text`, as `fr (French)`."""
    codes = {code: name for name, code in reversed(_names().items())}
    known = codes if len(text) <= 3 else _names()
    found = process.extractOne(text, list(known), scorer=fuzz.ratio)[0]
    code = found if found in codes else _names()[found]
    return f"{code} ({codes[code].title()})"
