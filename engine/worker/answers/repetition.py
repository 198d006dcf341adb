"""Answers that repeat themselves without end, as OCR models do on empty or damaged pages.

A run of the last tokens with a period is counted for every period at once, so that a token costs the same at any length.
"""

from __future__ import annotations

from typing import Final

import numpy as np

LONGEST_PERIOD: Final = 64
SHORTEST_RUN: Final = 192
"""Tokens. Rows of a table and lines of dots repeat too, but not for so long."""
REPEATS: Final = 8


class Repetition:
    """Tells when the tail of an answer is one piece of up to 64 tokens, eight times over and at least 192 tokens long."""

    def __init__(self) -> None:
        self._recent = np.full(LONGEST_PERIOD, -1, dtype=np.int64)  # the newest last
        self._runs = np.zeros(LONGEST_PERIOD, dtype=np.int64)
        self._wanted = np.maximum(SHORTEST_RUN, REPEATS * np.arange(1, LONGEST_PERIOD + 1))

    def found(self, token: int) -> bool:
        """Whether the answer, with this token, has come to repeat itself."""
        same = self._recent[::-1] == token  # place p - 1: the token p before this one
        self._runs = np.where(same, self._runs + 1, 0)
        self._recent = np.append(self._recent[1:], token)
        return bool((self._runs >= self._wanted).any())
