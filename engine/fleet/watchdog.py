"""Whether a worker that lives still answers: a step that never ends (a wedged device, a deadlock) looks like work."""

from __future__ import annotations

from typing import Final, Literal

Verdict = Literal["well", "ask", "lost"]
MOST_SECONDS_A_LOOK: Final = 10.0
"""Longer between two looks, it was the engine that stood still, and perhaps all of the machine: nobody is blamed for that."""


class Watchdog:
    """Pure. `note_word` when anything came from the worker, `look` every few seconds.

    Silence alone says nothing: an idle worker has nothing to say, and a busy one may be long in one step. So one that has
    requests and said nothing since the look before is asked, and its loop answers between two steps. From then on it owes a
    word, whether its requests stay or leave; one that owes it for `timeout_seconds` (0: for ever) is lost.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._spoke, self._asked = True, False
        self._looked_at = self._owed_seconds = 0.0

    def note_word(self) -> None:
        self._spoke, self._asked, self._owed_seconds = True, False, 0.0

    def look(self, now: float, *, has_requests: bool) -> Verdict:
        """`now` by any clock that does not go back. `ask` and `lost` are said once for each silence."""
        elapsed = min(now - self._looked_at, MOST_SECONDS_A_LOOK)
        spoke, self._looked_at, self._spoke = self._spoke, now, False
        if self._asked:
            self._owed_seconds += elapsed
            if self._owed_seconds < self._timeout_seconds:
                return "well"
            self._asked, self._owed_seconds = False, 0.0
            return "lost"
        if spoke or not has_requests or not self._timeout_seconds:
            return "well"
        self._asked = True
        return "ask"
