"""Numbers as they are spoken."""

from __future__ import annotations

import random
import re
from typing import Final

_ENGLISH: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS: Final = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_HAN: Final = "零一二三四五六七八九"


def english(value: int) -> str:
    """A number from 0 to 999,999 in words."""
    if value < 20:
        return _ENGLISH[value]
    if value < 100:
        rest = value % 10
        return _TENS[value // 10 - 2] + (" " + _ENGLISH[rest] if rest else "")
    if value < 1000:
        rest = value % 100
        return _ENGLISH[value // 100] + " hundred" + (" " + english(rest) if rest else "")
    rest = value % 1000
    return english(value // 1000) + " thousand" + (" " + english(rest) if rest else "")


def chinese(value: int) -> str:
    """A number from 0 to 99,999,999 in characters."""
    if value >= 10_000:
        rest = value % 10_000
        return chinese(value // 10_000) + "万" + ("零" if 0 < rest < 1000 else "") + (chinese(rest) if rest else "")
    if value < 10:
        return _HAN[value]
    if value < 20:
        return "十" + (_HAN[value - 10] if value > 10 else "")
    for unit, name in ((1000, "千"), (100, "百"), (10, "十")):
        if value >= unit:
            rest = value % unit
            zero = "零" if 0 < rest < unit // 10 else ""
            tail = (("一" if 10 <= rest < 20 else "") + chinese(rest)) if rest else ""
            return _HAN[value // unit] + name + zero + tail
    raise AssertionError(value)


def chinese_digits(text: str) -> str:
    """The digits one by one, as years and telephone numbers are read."""
    return "".join(_HAN[int(digit)] for digit in text)


def spoken_chinese(text: str) -> str:
    """`text` with its digits as characters: years digit by digit; percentages, decimals and whole numbers as numbers."""
    text = re.sub(r"(\d{4})(?=年)", lambda m: chinese_digits(m[1]), text)
    text = re.sub(r"(\d{1,7}(?:\.\d+)?)[%％]", lambda m: "百分之" + spoken_chinese(m[1]), text)
    text = re.sub(r"(\d{1,7})\.(\d+)", lambda m: chinese(int(m[1])) + "点" + chinese_digits(m[2]), text)
    return re.sub(r"\d+", lambda m: chinese(int(m[0])) if len(m[0]) < 8 else chinese_digits(m[0]), text)


def spoken_english(text: str) -> str:
    return re.sub(r"\d+", lambda m: " " + english(int(m[0])) + " " if len(m[0]) < 6 else " ", text)


def draw(rng: random.Random) -> int:
    """A random number; small ones are far more likely than large ones."""
    return rng.randrange(10 ** rng.choices((1, 2, 3, 4), (5, 4, 2, 1))[0])
