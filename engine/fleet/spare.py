"""A worker process that was not told yet what to be, with everything imported: a load then begins with the weights."""

from __future__ import annotations

import logging
import time
from typing import Any

from duet.supervise.backoff import HEALTHY_SECONDS, restart_delay_seconds
from duet.supervise.child import Child
from engine.fleet.starting import new_process

logger = logging.getLogger(__name__)


class Spare:
    """At most one such process. Owned by the launcher."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._child: Child[Any] | None = None
        self._started_at = self._rests_until = 0.0
        self._failures = 0

    @property
    def ready(self) -> bool:
        return self._child is not None and self._child.returncode is None

    async def keep(self) -> None:
        """Start a process unless there is one. After one that ended by itself, the next start waits longer each time."""
        if self._child is not None and not self.ready:
            await self._note_death()
        if self.ready or time.monotonic() < self._rests_until:
            return
        self._started_at = time.monotonic()
        self._child = await new_process(self._module, "spare")

    async def _note_death(self) -> None:
        now = time.monotonic()
        self._failures = 1 if now - self._started_at > HEALTHY_SECONDS else self._failures + 1
        pause = restart_delay_seconds(self._failures)
        self._rests_until = now + pause
        logger.warning("the spare worker ended by itself", extra={"action": "spare_ended", "pause_seconds": pause})
        await self.drop()

    def take(self) -> Child[Any] | None:
        """The process, which the caller now owns; None when there is none."""
        child, self._child = (self._child, None) if self.ready else (None, self._child)
        return child

    async def drop(self) -> None:
        """End it: its memory is wanted, or the engine ends."""
        child, self._child = self._child, None
        if child is not None:
            await child.stop()
