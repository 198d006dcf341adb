"""How many prompt tokens fit into the time that running streams may wait. Pure: the loop says how long its ticks took."""

from __future__ import annotations

from typing import Final

STALL_SECONDS: Final = 0.05
"""A prompt chunk makes running streams wait at most this long, or one decode step if that takes longer: then prefill and decode
have half of the time each."""
BATCH_STALL_SECONDS: Final = 0.025
"""A batch chunk takes at most this long (or one decode step): a request that arrives meanwhile waits for the rest of it, then for
its own prompt."""
SMALLEST_CHUNK: Final = 32
"""Prompt tokens. A smaller chunk would read all weights for next to nothing."""
_NEWEST: Final = 0.3
"""Weight of the newest tick in the averages. A token costs more the deeper it stands in its prompt: old ticks mislead."""


class Pace:
    """Moving averages: the seconds of a decode step, and those of a prompt token beside it."""

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
        """Prompt tokens that fit into `stall_seconds` or one decode step: at most `largest`, which is also the answer before
        anything was measured."""
        if self._token is None:
            return largest
        seconds = max(stall_seconds, self._step or 0.0)
        return max(min(SMALLEST_CHUNK, largest), min(largest, int(seconds / self._token)))


class Ticks:
    """Tells a pace what the device did between the ends of two ticks.

    The loop waits for neither half of a tick that it sends: a step's tokens are read one tick later, and beside running rows a
    prompt chunk is not waited for before the next tick. So the time of a tick belongs to what the tick before it sent.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.interrupted()

    def interrupted(self) -> None:
        """The loop did, or waited for, something else since the last tick: that time says nothing about the device."""
        self._ended_at: float | None = None
        self._beside, self._decoded = 0, False

    def ended(self, began: float, now: float, *, decoded: bool, prefill_tokens: int, beside: bool) -> None:
        """A tick sent a decode step, prompt tokens, or both. `beside`: the prompt tokens were not waited for."""
        waited = self._beside + (0 if beside else prefill_tokens)
        if self._decoded or waited:
            since = began if self._ended_at is None else self._ended_at
            self._pace.observe(now - since, decoded=self._decoded, prefill_tokens=waited)
        self._ended_at, self._beside, self._decoded = now, prefill_tokens if beside else 0, decoded


def _average(before: float | None, newest: float) -> float:
    return newest if before is None else before + _NEWEST * (newest - before)
