"""What the gateway hears of a worker besides answers."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

REPORT_SECONDS: Final = 1.0

Report = TypeVar("Report")


class Reporter(Generic[Report]):
    """Sends what `sample` returns when that `differs` from what was sent last: every second at most. Owned by the loop.

    `sent` is what the gateway assumes before the first report.
    """

    def __init__(
        self,
        send: Callable[[Report], None],
        sample: Callable[[], Report],
        sent: Report,
        *,
        differs: Callable[[Report, Report], bool] = operator.ne,
    ) -> None:
        self._send, self._sample, self._sent, self._differs = send, sample, sent, differs
        self._sampled_at = 0.0

    def report(self, *, now: bool = False) -> None:
        """`now`: the loop is about to block, so the report stays true for a while."""
        if not now and time.monotonic() - self._sampled_at < REPORT_SECONDS:
            return
        self._sampled_at = time.monotonic()
        found = self._sample()
        if self._differs(found, self._sent):
            self._sent = found
            self._send(found)
