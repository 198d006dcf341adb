"""Batch work waits while other workers have better work on the same device, but never for ever."""

from __future__ import annotations

from typing import Final

HOLD_SECONDS: Final = 10.0
SHARE_SECONDS: Final = 1.0
"""Of every eleven seconds that other work runs somewhere, batch work has one."""


class Gate:
    """Closed for `HOLD_SECONDS`, open for `SHARE_SECONDS`, and so on from the moment it was told to hold.

    A release shorter than a share begins nothing anew: requests that follow one another close are one stretch of work.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._released_at: float | None = None

    def hold(self, now: float) -> None:
        had_its_share = self._released_at is not None and now - self._released_at >= SHARE_SECONDS
        if self._since is None or had_its_share:
            self._since = now
        self._released_at = None

    def release(self, now: float) -> None:
        self._released_at = now if self._released_at is None else self._released_at

    def closed(self, now: float) -> bool:
        return self._held and self._phase(now) < HOLD_SECONDS

    def opens_in(self, now: float) -> float | None:
        """Seconds until a closed gate opens by itself; None when it is open."""
        return HOLD_SECONDS - self._phase(now) if self.closed(now) else None

    @property
    def _held(self) -> bool:
        return self._since is not None and self._released_at is None

    def _phase(self, now: float) -> float:
        assert self._since is not None
        return (now - self._since) % (HOLD_SECONDS + SHARE_SECONDS)
