"""Text as the metrics see it. A change here changes figures: raise `NORMALISER_VERSION` with it."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

NORMALISER_VERSION = "1"
HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
"""Unified ideographs with their extensions, the repetition mark 々 and the zero 〇."""
UNIT = re.compile(rf"[{HAN}]|\d+(?:[.,:]\d+)+|[^\W_{HAN}]+(?:['’][^\W_{HAN}]+)*")
"""One Han character, one number (3.5 and 10:30 are one), or one word (it's is one, and qwen3)."""
_HAN_CHARACTER = re.compile(f"[{HAN}]")
_GROUPING = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@cache
def _to_simplified() -> Any:
    import opencc

    return opencc.OpenCC("t2s")


def normalise(text: str) -> str:
    """NFKC, lower case, traditional Han to simplified, no punctuation, one space between words and numbers, none beside
    Han characters.

    Numbers stay as written, in digits or in words, except for the comma between thousands: 1,000 becomes 1000, 3.5 stays
    3.5, and 三 does not become 3.
    """
    simplified = _to_simplified().convert(unicodedata.normalize("NFKC", text).lower())
    joined = ""
    for piece in units(_GROUPING.sub("", simplified.replace("’", "'"))):
        gap = " " if joined and not is_han(joined[-1]) and not is_han(piece[0]) else ""
        joined += gap + piece
    return joined


def units(text: str) -> list[str]:
    """Han characters one by one, and numbers and words of other scripts: the units of the mixed error rate (MER)."""
    return UNIT.findall(text)


def characters(text: str) -> list[str]:
    """The characters of normalised text without spaces: the units of the character error rate (CER)."""
    return [char for char in normalise(text) if char != " "]


def is_han(text: str) -> bool:
    """Whether all of `text` is Han characters."""
    return bool(text) and all(_HAN_CHARACTER.match(char) for char in text)
