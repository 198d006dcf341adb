"""Joins pieces of text as people write them: no space beside Han characters, one between other words."""

from __future__ import annotations

from collections.abc import Iterable

_WIDE = ("\u3000", "\u30ff"), ("\u3400", "\u9fff"), ("\uff00", "\uffef")


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
