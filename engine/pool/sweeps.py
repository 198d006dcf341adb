"""What the pool does every two seconds: it answers to the machine's memory, ends silent workers, and unloads what nobody uses."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from duet.settings import EngineSettings
from engine.pool import ledger
from engine.pool.ledger import Evict, Shrink
from engine.pool.residency import Residency

logger = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 2.0


class Sweeps:
    """Owned by the pool. Reads the slots of `residency` and unloads through it."""

    def __init__(self, settings: EngineSettings, residency: Residency) -> None:
        self._settings, self._residency = settings, residency
        self._admission, self._spare = residency.admission, residency.launcher.spare
        self._surplus_since: float | None = None

    async def run(self) -> None:
        """Sweep until cancelled. A sweep that fails is logged, and the next one comes all the same."""
        engine = self._settings
        times = [engine.idle_unload_seconds, engine.worker_silence_seconds, *engine.ttl_seconds.values()]
        pause = min([SWEEP_SECONDS, *(seconds / 4 for seconds in times if seconds)])
        while True:
            await asyncio.sleep(pause)
            try:
                await self._sweep()
            except Exception:
                logger.exception("the sweep failed", extra={"action": "sweep_failed"})

    async def _sweep(self) -> None:
        for slot in self._residency.slots.values():
            if slot.memory is not None and slot.memory.working_set_bytes:
                self._admission.working_set_bytes = slot.memory.working_set_bytes
        await self._admission.sample()
        for worker in self._residency.workers():
            worker.watch()
        if self._admission.pressure != "normal":
            await self._relieve()
        self._keep_within_limit()
        for model in ledger.expired(self._residency.entries(), time.monotonic()):
            self._residency.begin_unload(model, "idle")
        if self._spare_fits():
            await self._spare.keep()

    async def _relieve(self) -> None:
        """The machine is short of memory. The spare goes, then idle models: one a sweep, or all of them when it is critical. If
        that is not enough, workers give up KV in memory.

        A model that was just loaded stays unless it is critical: else models would come and go for as long as the warning lasts.
        """
        await self._spare.drop()
        critical = self._admission.pressure == "critical"
        idle = ledger.relief(self._residency.entries(), self._admission.rules, time.monotonic(), critical=critical)
        logger.warning(
            "the machine is short of memory",
            extra={"action": "memory_pressure", "level": self._admission.pressure, "unloading": ",".join(idle)},
        )
        for model in idle:
            self._residency.begin_unload(model, "pressure")
        if critical or not idle:
            for worker in self._residency.workers():
                worker.free_memory()

    def _keep_within_limit(self) -> None:
        """When models have grown beyond their limit, workers give up KV in memory first, and idle models go in later sweeps."""
        entries, limit, now = self._residency.entries(), self._admission.limit(), time.monotonic()
        match ledger.surplus(entries, limit, self._admission.rules, now, since=self._surplus_since):
            case None:
                self._surplus_since = None
            case Shrink():
                self._surplus_since = now
                charged = sum(entry.bytes for entry in entries)
                logger.warning(
                    "models hold more than they may: %s", ledger.holders(entries),
                    extra={"action": "memory_surplus", "charged_bytes": charged, "limit_bytes": limit.ceiling_bytes},
                )  # fmt: skip
                for worker in self._residency.workers():
                    worker.free_memory()
            case Evict(models):
                for model in models:
                    self._residency.begin_unload(model, "surplus")

    def _spare_fits(self) -> bool:
        wished, admission = self._settings.warm_spare, self._admission
        if not (self._residency.preset.spare if wished is None else wished) or admission.pressure != "normal":
            return False
        loading = any(slot.loading is not None for slot in self._residency.slots.values())
        available = admission.outlook.available_bytes if admission.outlook is not None else 0
        return not loading and available >= admission.reserve_bytes + ledger.WORKER_BYTES
