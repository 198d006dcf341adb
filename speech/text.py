"""Text as people write it: read from their files and fields by one function, and joined from pieces."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable

from duet.errors import InvalidRequest

_WIDE = ("\u3000", "\u30ff"), ("\u3400", "\u9fff"), ("\uff00", "\uffef")
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE_END = re.compile("\r\n|[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]")
# What nobody sees: soft hyphen, zero-width space, joiner of words, marks of direction, BOM.
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]")
# The other two join letters of Persian or Hindi and parts of emoji. Beside letters of ours, or alone, they join nothing.
_STRAY_JOINER = re.compile(r"(?<![^\x00-\x7f\u3000-\u9fff])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f\u3000-\u9fff])")
# Chinese punctuation is full-width by right.
_KEPT_WIDE = frozenset("，！？：；（）～")
_DAMAGED = re.compile("[\x00\x80-\x84\x86-\x9f\ufffd\ud800-\udfff]")


def read(given: str | bytes, *, name: str) -> str:
    """What a person wrote, from a file (bytes) or a field: line ends are `\\n`, letters, digits and signs have their usual
    width, characters are composed (NFC), spaces are plain, and what nobody sees is gone. Tabs stay.

    Bytes are UTF-8, or UTF-16 or UTF-32 with its mark. Reading twice changes nothing. Raises `InvalidRequest` for the field
    `name` where the text is not in such an encoding.
    """
    text = given if isinstance(given, str) else _decoded(given, name)
    if _DAMAGED.search(text):
        raise InvalidRequest(f"{name} is not UTF-8 text: save it as UTF-8", param=name)
    text = unicodedata.normalize("NFC", _LINE_END.sub("\n", text))
    text = "".join(_usual_width(char) for char in text)
    text = _STRAY_JOINER.sub("", _INVISIBLE.sub("", text))
    text = "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")
    # Narrow kana become whole ones with a mark beside them.
    return unicodedata.normalize("NFC", text)


def _decoded(given: bytes, name: str) -> str:
    encoding = next((encoding for mark, encoding in _MARKS if given.startswith(mark)), "utf-8")
    try:
        return given.decode(encoding)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} is not UTF-8 text: save it as UTF-8", param=name) from error


def _usual_width(char: str) -> str:
    if char in _KEPT_WIDE:
        return char
    if unicodedata.category(char) == "Zs":
        return " "
    kind = unicodedata.decomposition(char).partition(" ")[0]
    return unicodedata.normalize("NFKC", char) if kind in ("<wide>", "<narrow>") else char


def join(pieces: Iterable[str]) -> str:
    """Segments of one recording as one text."""
    joined = ""
    for piece in (piece.strip() for piece in pieces):
        if piece:
            gap = " " if joined and not is_wide(joined[-1]) and not is_wide(piece[0]) else ""
            joined += gap + piece
    return joined


def is_wide(char: str) -> bool:
    """Han, kana and full-width characters: written without spaces."""
    return any(low <= char <= high for low, high in _WIDE)
