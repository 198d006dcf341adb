"""Batch work pauses while another worker has better work on the same device, but never for ever.

This is the worker's half of the rule. The gateway decides when to pause: `engine.fleet.batch_pause`.
"""

from __future__ import annotations

from typing import Final

HOLD_SECONDS: Final = 10.0
SHARE_SECONDS: Final = 1.0
"""Of every eleven seconds in which other work runs somewhere, batch work has one."""


class BatchPause:
    """Paused for `HOLD_SECONDS`, going on for `SHARE_SECONDS`, and so on from the moment it was told to hold.

    A release shorter than a share does not start this anew: requests that follow one another closely are one stretch of work.
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

    def paused(self, now: float) -> bool:
        return self._held and self._phase(now) < HOLD_SECONDS

    def ends_in(self, now: float) -> float | None:
        """Seconds until a pause ends by itself; None when there is none."""
        return HOLD_SECONDS - self._phase(now) if self.paused(now) else None

    @property
    def _held(self) -> bool:
        return self._since is not None and self._released_at is None

    def _phase(self, now: float) -> float:
        assert self._since is not None
        return (now - self._since) % (HOLD_SECONDS + SHARE_SECONDS)
