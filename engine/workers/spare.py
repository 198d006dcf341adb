"""A worker process that waits without a model, with everything imported: a load then begins with the weights."""

from __future__ import annotations

import logging
from typing import Any

from duet.supervise import Child
from engine.workers.handle import OFFLINE
from engine.workers.protocol import FromWorker

logger = logging.getLogger(__name__)


class Spare:
    """At most one such process. Owned by the pool."""

    def __init__(self, module: str, *, log_level: str) -> None:
        self._module, self._log_level = module, log_level
        self._child: Child[Any] | None = None

    @property
    def ready(self) -> bool:
        return self._child is not None and self._child.returncode is None

    async def keep(self) -> None:
        """Start one unless it is there."""
        if self.ready:
            return
        await self.drop()
        arguments = ("--spare", "--log-level", self._log_level)
        self._child = await Child.start(self._module, arguments, FromWorker, name="worker:spare", environment=OFFLINE)

    def take(self) -> Child[Any] | None:
        """The process, now the caller's; None when there is none."""
        child, self._child = (self._child, None) if self.ready else (None, self._child)
        return child

    async def drop(self) -> None:
        """End it: its memory is wanted, or the engine ends."""
        child, self._child = self._child, None
        if child is not None:
            await child.stop()
