"""How many prompt tokens fit into the time that running streams may wait. Pure: the loop tells what its ticks took."""

from __future__ import annotations

from typing import Final

STALL_SECONDS: Final = 0.05
"""Running streams wait this long for a prompt chunk, or as long as one of their own steps takes if that is longer: then
prefill and decode have half of the time each."""
BATCH_STALL_SECONDS: Final = 0.025
"""So long at most, or a step, takes a chunk of a batch prompt: whoever comes in its middle waits for what is left of it and then
for a prompt of his own."""
SMALLEST_CHUNK: Final = 32
"""Prompt tokens. Smaller chunks read all weights for next to nothing."""
_NEWEST: Final = 0.3
"""Weight of the newest tick. Costs grow with the depth of the prompt: old ones mislead."""


class Pace:
    """Moving averages of a decode step's seconds and of a prompt token's beside it."""

    def __init__(self) -> None:
        self._step: float | None = None
        self._token: float | None = None

    def observe(self, seconds: float, *, decoded: bool, prefill_tokens: int) -> None:
        """One tick took `seconds`, in which the device ran a decode step, a prompt chunk, or both."""
        if prefill_tokens == 0:
            if decoded:
                self._step = _average(self._step, seconds)
            return
        rest = seconds - (self._step or 0.0) if decoded else seconds
        if rest > 0:
            self._token = _average(self._token, rest / prefill_tokens)

    def chunk(self, largest: int, *, stall_seconds: float = STALL_SECONDS) -> int:
        """Prompt tokens of a tick in which somebody waits: at most `largest`, and that before anything was measured."""
        if self._token is None:
            return largest
        seconds = max(stall_seconds, self._step or 0.0)
        return max(min(SMALLEST_CHUNK, largest), min(largest, int(seconds / self._token)))


class Ticks:
    """Tells a pace what the device did in the time between the ends of two ticks: beside running rows nobody waits for a prompt
    chunk before the next tick, and a step's tokens are read one tick later too."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.interrupted()

    def interrupted(self) -> None:
        """Between these ticks the loop did, or waited for, something else: they tell nothing."""
        self._ended_at: float | None = None
        self._beside, self._decoded = 0, False

    def ended(self, began: float, now: float, *, decoded: bool, prefill_tokens: int, beside: bool) -> None:
        """A tick sent a decode step, prompt tokens, or both; `beside`: without waiting for these."""
        waited = self._beside + (0 if beside else prefill_tokens)
        if self._decoded or waited:
            since = began if self._ended_at is None else self._ended_at
            self._pace.observe(now - since, decoded=self._decoded, prefill_tokens=waited)
        self._ended_at, self._beside, self._decoded = now, prefill_tokens if beside else 0, decoded


def _average(before: float | None, newest: float) -> float:
    return newest if before is None else before + _NEWEST * (newest - before)
