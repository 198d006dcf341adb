"""What the gateway hears of a worker besides answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

REPORT_SECONDS: Final = 1.0

Report = TypeVar("Report")


class Reporter(Generic[Report]):
    """Sends what `look` finds when it differs from what it said before: every second at most. Owned by the loop."""

    def __init__(self, send: Callable[[Report], None], look: Callable[[], Report], said: Report) -> None:
        self._send, self._look, self._said = send, look, said
        self._said_at = 0.0

    def report(self, *, now: bool = False) -> None:
        """`now`: the loop is about to wait, and what is so then stays for long."""
        if not now and time.monotonic() - self._said_at < REPORT_SECONDS:
            return
        self._said_at = time.monotonic()
        found = self._look()
        if found != self._said:
            self._said = found
            self._send(found)
