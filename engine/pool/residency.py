"""Which models are loaded: at the first request, for as long as their TTL or memory allows, in a process each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any, Final

from duet.errors import Busy, Conflict, DuetError, MemoryFull, ModelTooLarge, Unavailable
from duet.settings import Settings
from engine.cards import Card, Catalogue
from engine.downloads import Downloads
from engine.fleet.handle import WorkerHandle
from engine.fleet.starting import EndedWhileLoading
from engine.pool import ledger
from engine.pool.fetch import fetch
from engine.pool.launcher import Launcher
from engine.pool.ledger import Entry, Evict, Shrink
from engine.pool.room import Probe, Room, total_bytes
from engine.pool.slot import Slot, kv_bytes_for, wanted
from engine.presets import PRESETS
from engine.types import ModelState, Placement, Unloading

logger = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 2.0
CRITICAL_RETRY_SECONDS: Final = 10
RESIDENT_RETRY_SECONDS: Final = 60.0
"""A model that is to be resident and could not be loaded is tried again after this long."""


class Residency:
    """Owned by the pool. Owns the slots; `open` and `close` bracket its life."""

    def __init__(
        self, settings: Settings, catalogue: Catalogue, downloads: Downloads, *, worker_module: str, probe: Probe
    ) -> None:
        self._settings, self._catalogue, self._downloads = settings, catalogue, downloads
        self._preset = PRESETS[catalogue.preset]
        self.slots: dict[str, Slot] = {}
        self.launcher = Launcher(settings, worker_module, total_bytes=total_bytes(probe))
        self.room = Room(
            settings.engine,
            self._preset,
            probe=probe,
            entries=self.entries,
            held_bytes=lambda: sum(slot.held_bytes for slot in self.slots.values()),
            evict=lambda model: self._begin_unload(self.slots[model], "evicted"),
        )
        self._waiting = 0
        self._surplus_since: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        await asyncio.to_thread(self.launcher.leases.trim)
        await self.room.look()
        self._tasks = {
            asyncio.create_task(self._sweep(), name="sweeper"),
            asyncio.create_task(self._load_residents(), name="residents"),
        }

    async def close(self) -> None:
        """End every load and every worker."""
        slots = self.slots.values()
        ending: list[asyncio.Task[Any]] = [*self._tasks, *(slot.loading for slot in slots if slot.loading)]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        for slot in slots:
            if slot.worker is not None and slot.worker.alive:
                self._begin_unload(slot, "stopping")
        unloading = [slot.unloading for slot in slots if slot.unloading]
        await asyncio.gather(*unloading, self.launcher.spare.drop(), return_exceptions=True)
        self.room.close()

    # Requests --------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def acquire(self, model: str) -> AsyncIterator[WorkerHandle]:
        """A living worker of the model, kept while the request runs. Raises `Busy`, `Unavailable`, `ModelNotFound`,
        `ModelTooLarge`."""
        if self._waiting >= self._settings.engine.max_waiting_requests:
            raise Busy(f"{self._waiting} requests are under way already", retry_after_seconds=5)
        if self.room.pressure == "critical":
            raise MemoryFull(
                f"the machine is critically short of memory, nothing new is begun: {ledger.holders(self.entries())}",
                retry_after_seconds=CRITICAL_RETRY_SECONDS,
            )
        card = self._catalogue.resolve(model)
        slot = self._slot(card)
        self._waiting += 1
        slot.users += 1
        try:
            yield await self._loaded(card, slot)
        finally:
            self._waiting -= 1
            slot.users -= 1
            slot.last_used = time.monotonic()
            if not slot.users:
                self.room.note_change()
            self._forget(slot)

    async def _loaded(self, card: Card, slot: Slot) -> WorkerHandle:
        if slot.worker is not None:
            if slot.worker.alive:
                return slot.worker
            self._note_death(slot, slot.worker)
        if slot.loading is None:
            slot.check_rested()
            slot.loading = asyncio.create_task(self._load(card, slot), name=f"load {card.id}")
            slot.loading.add_done_callback(lambda task: self._note_load(slot, task))
        loading = slot.loading
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError as error:
            own = asyncio.current_task()
            if loading.cancelled() and not (own and own.cancelling()):
                raise Unavailable(f"the load of {card.id} was stopped", param="model") from error
            raise

    async def _load(self, card: Card, slot: Slot) -> WorkerHandle:
        self.room.refuse_too_large(wanted(card, self._kv_bytes(card)))
        if card.path is None:
            card = await fetch(card, self._downloads, slot, allowed=self._settings.engine.hub)
        assert card.path is not None
        kv_bytes = self._kv_bytes(card)
        wish = wanted(card, kv_bytes)
        slot.card, slot.state = card, "loading"
        loading = f"loading {card.id} ({ledger.gigabytes(card.memory_bytes)})"
        slot.progress = loading
        if slot.unloading is not None:
            await asyncio.wait([slot.unloading])
        await self.room.admit(
            wish,
            book=lambda: setattr(slot, "booked_bytes", wish.bytes),
            say=lambda reason: setattr(slot, "progress", f"{loading}: {reason}"),
            is_wanted=lambda: slot.users > 0,
        )
        slot.progress = loading
        started_at = time.monotonic()
        async with slot.moving:
            worker = await self.launcher.start(
                card,
                card.path,
                kv_bytes,
                left_bytes=self.room.limit().ceiling_bytes - wish.bytes,
                on_process=lambda pid: setattr(slot, "process", pid),
            )
        extra = {
            "action": "model_loaded",
            "model": card.id,
            "seconds": round(time.monotonic() - started_at, 1),
            "weight_bytes": worker.ready.weight_bytes,
            "estimate_bytes": wish.bytes,
        }
        logger.info("model loaded", extra=extra)
        return worker

    def _note_load(self, slot: Slot, task: asyncio.Task[WorkerHandle]) -> None:
        slot.loading, slot.progress, slot.last_used = None, "", time.monotonic()
        if not task.cancelled() and task.exception() is None:
            worker = task.result()
            slot.note_loaded(worker)
            worker.when_ended(lambda: self._note_death(slot, worker))
        else:
            if slot.unloading is None:  # else its former process still holds memory
                slot.note_gone()
            error = None if task.cancelled() else task.exception()
            no_room = isinstance(error, MemoryFull | ModelTooLarge)
            fetched = slot.state != "downloading"
            slot.state = "unloaded" if error is None or no_room else "failed"
            # Asking for what is not there or does not fit breaks nothing, nor does a hub that cannot be reached.
            asked_wrongly = isinstance(error, DuetError) and error.status < 500
            if error is not None and fetched and not no_room and not asked_wrongly:
                slot.note_failed_load(crashed=isinstance(error, EndedWhileLoading))
        self.room.note_change()
        self._forget(slot)

    def _note_death(self, slot: Slot, worker: WorkerHandle) -> None:
        """Once for a worker that ended by itself."""
        if slot.worker is not worker:
            return
        self.launcher.note_death(worker)
        slot.note_death(worker)
        self.room.note_change()

    def _begin_unload(self, slot: Slot, reason: Unloading) -> None:
        worker = slot.worker
        assert worker is not None
        assert slot.unloading is None
        slot.note_leaving(worker, reason)
        slot.unloading = asyncio.create_task(self._unload(slot, worker, reason), name=f"unload {slot.model}")

    async def _unload(self, slot: Slot, worker: WorkerHandle, reason: Unloading) -> None:
        try:
            async with slot.moving:
                await self.launcher.stop(worker)
        finally:
            slot.note_gone()
            slot.unloading = None
            self.room.note_change()
        logger.info(
            "model unloaded",
            extra={"action": "model_unloaded", "model": slot.model, "reason": reason},
        )

    # Operators -------------------------------------------------------------------------------------------------------

    async def load(self, name: str) -> Slot:
        """As a request would. Raises as `acquire`."""
        card = self._catalogue.resolve(name)
        async with self.acquire(card.id):
            return self.slots[card.id]

    async def unload(self, name: str, *, force: bool) -> Slot:
        """Returns when its memory is back. Raises `Conflict` while it has requests, unless `force`."""
        card = self._catalogue.resolve(name)
        slot = self.slots.get(card.id) or Slot(card)
        if slot.users and not force:
            raise Conflict(f"{slot.model} has {slot.users} requests: force=true ends them", param="force")
        if slot.loading is not None:
            slot.loading.cancel()
            await asyncio.wait([slot.loading])
        if slot.worker is not None:
            if slot.worker.alive:
                self._begin_unload(slot, "asked")
            else:
                self._note_death(slot, slot.worker)
        if slot.unloading is not None:
            await asyncio.wait([slot.unloading])
        return slot

    def pin(self, name: str, pinned: bool) -> Slot:
        slot = self._slot(self._catalogue.resolve(name))
        slot.pinned = "asked" if pinned else "no"
        self.room.note_change()
        self._forget(slot)
        return slot

    def _slot(self, card: Card) -> Slot:
        """The model's slot, kept as long as there is something to tell of it: `_forget` is due when it is left."""
        return self.slots.setdefault(card.id, Slot(card))

    def _forget(self, slot: Slot) -> None:
        if slot.forgettable:
            self.slots.pop(slot.model, None)

    # What is loaded --------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """The ledger's lines."""
        found = [slot.entry(self._preset, self.ttl_seconds(slot.card)) for slot in self.slots.values()]
        return [entry for entry in found if entry is not None]

    def _workers(self) -> list[WorkerHandle]:
        """Those that live and take requests."""
        return [slot.worker for slot in self.slots.values() if slot.worker is not None and slot.worker.alive]

    def ttl_seconds(self, card: Card) -> float | None:
        """How long a model stays without being used; None: it stays."""
        engine = self._settings.engine
        seconds = engine.ttl_seconds.get(card.id, card.ttl_seconds)
        return (engine.idle_unload_seconds if seconds is None else seconds) or None

    def _kv_bytes(self, card: Card) -> int:
        return kv_bytes_for(card, self.launcher.kv_memory_bytes, self.room.limit().ceiling_bytes)

    def state(self, card: Card) -> ModelState:
        slot = self.slots.get(card.id)
        state = slot.shown_state if slot is not None else "unloaded"
        return "absent" if state == "unloaded" and card.path is None else state

    def placement(self, card: Card) -> Placement:
        slot = self.slots.get(card.id) or Slot(card)
        worker = slot.worker if slot.worker is not None and slot.worker.alive else None
        running = worker.active if worker is not None else 0
        now = time.monotonic()
        return Placement(
            id=card.id,
            state=self.state(card),
            pinned=slot.pinned != "no",
            resident=slot.pinned in ("preset", "resident"),
            estimate_bytes=wanted(card, self._kv_bytes(card)).bytes,
            charged_bytes=slot.charged_bytes,
            memory_bytes=slot.held_bytes if slot.memory is not None else None,
            memory=slot.memory,
            ttl_seconds=self.ttl_seconds(card),
            idle_seconds=round(now - slot.last_used, 1) if worker is not None and not slot.users else None,
            loaded_seconds=round(now - slot.loaded_at, 1) if worker is not None else None,
            running=running,
            waiting=max(0, slot.users - running),
            batch=worker.batch if worker is not None else None,
            loads=slot.loads,
            crashes=slot.crashes,
            rests_seconds=round(slot.rests_seconds, 1),
            unloads=dict(slot.unloads),
            pid=worker.pid if worker is not None else None,
        )

    async def _load_residents(self) -> None:
        """Load what is to be resident. By default the preset's roles, as far as real models for them are here. What cannot be
        loaded just now is tried again."""
        wished = self._settings.engine.resident
        names = [*(self._preset.resident if wished is None else wished)]
        again = False
        while names := [name for name in names if not await self._load_resident(name, again=again)]:
            await asyncio.sleep(RESIDENT_RETRY_SECONDS)
            again = True

    async def _load_resident(self, name: str, *, again: bool) -> bool:
        """Whether nothing more is to be done: it is loaded, or to try again is of no use."""
        by_preset = self._settings.engine.resident is None
        try:
            card = self._catalogue.resolve(name)
            if by_preset and (card.path is None or card.demonstration):
                return True
            slot = self._slot(card)
            if again and slot.pinned == "no":
                return True  # an operator unpinned it meanwhile
            slot.pinned = "preset" if by_preset else "resident"
            await self.load(card.id)
        except DuetError as error:
            logger.warning(
                "%s is to be resident and cannot be: %s", name, error.message, extra={"action": "resident_failed"}
            )
            return not isinstance(error, Unavailable | Busy)
        return True

    async def _sweep(self) -> None:
        engine = self._settings.engine
        times = [engine.idle_unload_seconds, engine.worker_silence_seconds, *engine.ttl_seconds.values()]
        pause = min([SWEEP_SECONDS, *(seconds / 4 for seconds in times if seconds)])
        while True:
            await asyncio.sleep(pause)
            try:
                await self._tend()
            except Exception:
                logger.exception("the sweep failed", extra={"action": "sweep_failed"})

    async def _tend(self) -> None:
        """Answer to the machine's memory and to silent workers, unload what was idle for its TTL, keep the spare."""
        for slot in self.slots.values():
            if slot.memory is not None:
                self.room.working_set_bytes = slot.memory.working_set_bytes or self.room.working_set_bytes
        await self.room.look()
        for worker in self._workers():
            worker.watch()
        if self.room.pressure != "normal":
            await self._relieve()
        self._keep_within()
        for model in ledger.expired(self.entries(), time.monotonic()):
            self._begin_unload(self.slots[model], "idle")
        if self._spare_fits():
            await self.launcher.spare.keep()

    async def _relieve(self) -> None:
        """The machine is short of memory: idle models go first, one a sweep unless it is critical; then KV in memory. What was
        just loaded stays, unless it is critical: else models would come and go for as long as the warning lasts."""
        await self.launcher.spare.drop()
        critical = self.room.pressure == "critical"
        idle = ledger.relief(self.entries(), self.room.rules, time.monotonic(), critical=critical)
        logger.warning(
            "the machine is short of memory",
            extra={"action": "memory_pressure", "level": self.room.pressure, "unloading": ",".join(idle)},
        )
        for model in idle:
            self._begin_unload(self.slots[model], "pressure")
        if critical or not idle:
            for worker in self._workers():
                worker.free_memory()

    def _keep_within(self) -> None:
        """Models have grown beyond what they may hold together: what can be had again goes first, idle models in later sweeps."""
        entries, limit, now = self.entries(), self.room.limit(), time.monotonic()
        match ledger.surplus(entries, limit, self.room.rules, now, since=self._surplus_since):
            case None:
                self._surplus_since = None
            case Shrink():
                self._surplus_since = now
                charged = sum(entry.bytes for entry in entries)
                logger.warning(
                    "models hold more than they may: %s", ledger.holders(entries),
                    extra={"action": "memory_surplus", "charged_bytes": charged, "limit_bytes": limit.ceiling_bytes},
                )  # fmt: skip
                for worker in self._workers():
                    worker.free_memory()
            case Evict(models):
                for model in models:
                    self._begin_unload(self.slots[model], "surplus")

    def _spare_fits(self) -> bool:
        wished = self._settings.engine.warm_spare
        if not (self._preset.spare if wished is None else wished) or self.room.pressure != "normal":
            return False
        loading = any(slot.loading is not None for slot in self.slots.values())
        available = self.room.outlook.available_bytes if self.room.outlook is not None else 0
        return not loading and available >= self.room.reserve_bytes + ledger.WORKER_BYTES
