"""Batch work waits while other workers have better work on the same device, but never for ever."""

from __future__ import annotations

from typing import Final

HOLD_SECONDS: Final = 10.0
SHARE_SECONDS: Final = 1.0
"""Of every eleven seconds that other work runs somewhere, batch work has one."""


class Gate:
    """Closed for `HOLD_SECONDS`, open for `SHARE_SECONDS`, and so on from the moment it was told to hold."""

    def __init__(self) -> None:
        self._since: float | None = None

    def hold(self, now: float) -> None:
        self._since = now if self._since is None else self._since

    def release(self) -> None:
        self._since = None

    def closed(self, now: float) -> bool:
        return self._since is not None and (now - self._since) % (HOLD_SECONDS + SHARE_SECONDS) < HOLD_SECONDS

    def opens_in(self, now: float) -> float | None:
        """Seconds until a closed gate opens by itself; None when it is open."""
        if self._since is None or not self.closed(now):
            return None
        return HOLD_SECONDS - (now - self._since) % (HOLD_SECONDS + SHARE_SECONDS)
