"""Text as the metrics see it. Any change here changes figures: raise `NORMALISER_VERSION`."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

NORMALISER_VERSION = "1"
HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
UNIT = re.compile(rf"[{HAN}]|[^\W_{HAN}]+(?:['’][^\W_{HAN}]+)*")


@cache
def _to_simplified() -> Any:
    import opencc

    return opencc.OpenCC("t2s")


def normalise(text: str) -> str:
    """NFKC, lower case, traditional Han to simplified, punctuation dropped, one space between Latin words and none beside
    Han characters. Numbers stay as they are written."""
    simplified = _to_simplified().convert(unicodedata.normalize("NFKC", text).lower())
    pieces = units(simplified)
    joined = ""
    for piece in pieces:
        gap = " " if joined and not _is_han(joined[-1]) and not _is_han(piece[0]) else ""
        joined += gap + piece
    return joined


def units(text: str) -> list[str]:
    """Han characters one by one, and words of other scripts: the units of the mixed error rate (MER)."""
    return UNIT.findall(text)


def characters(text: str) -> list[str]:
    """The characters of normalised text without spaces: the units of the character error rate (CER)."""
    return [char for char in normalise(text) if char != " "]


def is_han(text: str) -> bool:
    """Whether all of `text` is Han characters."""
    return bool(text) and all(_is_han(char) for char in text)


def _is_han(char: str) -> bool:
    return "\u3400" <= char <= "\u4dbf" or "\u4e00" <= char <= "\u9fff" or "\uf900" <= char <= "\ufaff"
