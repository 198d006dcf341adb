"""Answers that repeat themselves without end, as OCR models do on empty or damaged pages.

For every period up to `LONGEST_PERIOD`, the length of the run of newest tokens that each equal the token one period before is
counted. All periods are counted at once, so a token costs the same at any length of the answer.
"""

from __future__ import annotations

from typing import Final

import numpy as np

LONGEST_PERIOD: Final = 64
SHORTEST_RUN: Final = 192
"""Tokens. Rows of a table and lines of dots repeat too, but in shorter runs."""
REPEATS: Final = 8


class Repetition:
    """Tells when an answer ends in repetitions of one piece of at most 64 tokens: eight or more, and 192 tokens or more."""

    def __init__(self) -> None:
        self._recent = np.full(LONGEST_PERIOD, -1, dtype=np.int64)  # the newest last
        self._runs = np.zeros(LONGEST_PERIOD, dtype=np.int64)
        self._wanted = np.maximum(SHORTEST_RUN, REPEATS * np.arange(1, LONGEST_PERIOD + 1))

    def found(self, token: int) -> bool:
        """Whether the answer repeats itself now that `token` is its newest."""
        same = self._recent[::-1] == token  # index p - 1: whether the token p before this one is the same
        self._runs = np.where(same, self._runs + 1, 0)
        self._recent = np.append(self._recent[1:], token)
        return bool((self._runs >= self._wanted).any())
