"""Who must wait for whom among workers: they share one device, and batch work lets all other work go first."""

from __future__ import annotations

from collections import Counter

from engine.types import Priority


class Foreground:
    """Counts requests that somebody waits for, by model. Pure; the pool tells the workers what follows from it."""

    def __init__(self) -> None:
        self._live: Counter[str] = Counter()

    def enter(self, model: str, priority: Priority) -> None:
        if priority != "batch":
            self._live[model] += 1

    def leave(self, model: str, priority: Priority) -> None:
        if priority != "batch":
            self._live[model] -= 1
            if self._live[model] <= 0:
                del self._live[model]

    def holds(self, model: str) -> bool:
        """Whether batch work of this model waits: others have better work. Its own worker orders its own."""
        return any(other != model for other in self._live)
