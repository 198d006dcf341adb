"""Texts that are too long are found out from their beginning: tokenising 50 MB takes a minute and 6 GB."""

from __future__ import annotations

from typing import Any, Final

SHORT_CHARACTERS: Final = 1 << 13
"""A text of this many characters, or four for each token of the limit, is not worth a look ahead."""
_LEAST_PIECE, _LARGEST_PIECE = 1 << 13, 1 << 16
_CUT_TOKENS = 64
"""Where a text is cut, its pieces may have some tokens more than the whole. A cut changes two or three."""


def tokens_beyond(tokenizer: Any, text: str, limit: int) -> int | None:
    """A number of tokens above `limit` that `text` has at least; None if it may have fewer. It takes as long as tokenising a text
    of `limit` tokens, unless single tokens are very long. `tokenizer` is a `tokenizers.Tokenizer`."""
    if len(text) <= max(SHORT_CHARACTERS, 4 * limit):
        return None
    count, piece = 0, min(max(2 * limit, _LEAST_PIECE), _LARGEST_PIECE)
    for start in range(0, len(text), piece):
        encoded = tokenizer.encode(text[start : start + piece], add_special_tokens=False)
        count += max(0, len(encoded.ids) - _CUT_TOKENS)
        if count > limit:
            return count
    return None
