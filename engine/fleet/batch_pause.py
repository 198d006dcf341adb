"""Batch work pauses while another worker has better work on the same device: all workers share one.

This is the gateway's half of the rule: for which models batch work pauses. The worker's half is
`engine.worker.scheduler.batch_pause`: there a pause never lasts for ever.
"""

from __future__ import annotations

from collections import Counter

from engine.types import Priority


class BatchPauseOrders:
    """Counts requests that are not batch work, by model. Pure; the pool passes what follows from it on to the workers."""

    def __init__(self) -> None:
        self._foreground: Counter[str] = Counter()

    def begin(self, model: str, priority: Priority) -> None:
        """A request for this model has a worker."""
        if priority != "batch":
            self._foreground[model] += 1

    def end(self, model: str, priority: Priority) -> None:
        """A request that began has ended."""
        if priority != "batch":
            self._foreground[model] -= 1
            if self._foreground[model] <= 0:
                del self._foreground[model]

    def pauses(self, model: str) -> bool:
        """Whether batch work of this model pauses: other models have better work. A worker puts its own work in order itself."""
        return any(other != model for other in self._foreground)
