"""Whether a living worker still answers. A step that never ends (a wedged device, a deadlock) looks like work from outside."""

from __future__ import annotations

from typing import Final, Literal

Verdict = Literal["well", "ask", "lost"]
MOST_SECONDS_A_CHECK: Final = 10.0
"""If two checks are further apart, the engine itself stood still, and perhaps the whole machine: the worker is not blamed
for it."""


class Watchdog:
    """Pure. Call `note_message` when anything came from the worker, and `check` every few seconds.

    Silence alone says nothing: an idle worker has nothing to say, and a busy one may be in a long step. So a worker that has
    requests and said nothing since the last check is asked, and its loop answers between two steps. From then on it owes a
    message, whether its requests stay or leave. If it owes one for `timeout_seconds` (0: never), it is lost.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._heard, self._asked = True, False
        self._checked_at = self._owed_seconds = 0.0

    def note_message(self) -> None:
        self._heard, self._asked, self._owed_seconds = True, False, 0.0

    def check(self, now: float, *, has_requests: bool) -> Verdict:
        """What to do about the worker now. `now` is of any clock that does not go back. `ask` and `lost` come once a silence."""
        elapsed = min(now - self._checked_at, MOST_SECONDS_A_CHECK)
        heard, self._checked_at, self._heard = self._heard, now, False
        if self._asked:
            self._owed_seconds += elapsed
            if self._owed_seconds < self._timeout_seconds:
                return "well"
            self._asked, self._owed_seconds = False, 0.0
            return "lost"
        if heard or not has_requests or not self._timeout_seconds:
            return "well"
        self._asked = True
        return "ask"
