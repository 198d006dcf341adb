"""Which models are loaded, each in a process of its own: a request loads its model, and others are unloaded for it if need be."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Final

from duet.errors import Busy, Conflict, DuetError, MemoryFull, ModelTooLarge, ModelUnusable, Unavailable
from duet.settings import Settings
from engine.cards import Card
from engine.catalogue import Catalogue
from engine.downloads import Downloads
from engine.fleet.handle import WorkerHandle
from engine.fleet.starting import EndedWhileLoading
from engine.pool import ledger
from engine.pool.admission import Admission, Probe, total_bytes
from engine.pool.fetch import fetch
from engine.pool.launcher import Launcher
from engine.pool.ledger import Entry
from engine.pool.slot import Slot, kv_bytes_for, wanted
from engine.presets import PRESETS
from engine.types import ModelState, Placement, Unloading

logger = logging.getLogger(__name__)

CRITICAL_RETRY_SECONDS: Final = 10


class Residency:
    """Owned by the pool. Owns the slots. `open` comes before the first load, `close` after the last."""

    def __init__(
        self, settings: Settings, catalogue: Catalogue, downloads: Downloads, *, worker_module: str, probe: Probe
    ) -> None:
        self._settings, self._catalogue, self._downloads = settings, catalogue, downloads
        self.preset = PRESETS[catalogue.preset]
        self.slots: dict[str, Slot] = {}
        self.launcher = Launcher(settings, worker_module, total_bytes=total_bytes(probe))
        self.admission = Admission(
            settings.engine,
            self.preset,
            probe=probe,
            entries=self.entries,
            resident_bytes=lambda: sum(slot.resident_bytes for slot in self.slots.values()),
            evict=lambda model: self.begin_unload(model, "evicted"),
        )
        self._under_way = 0

    async def open(self) -> None:
        """Trim KV directories to their caps, and read the machine's memory."""
        await asyncio.to_thread(self.launcher.leases.trim)
        await self.admission.sample()

    async def close(self) -> None:
        """End every load and every worker."""
        slots = self.slots.values()
        loading = [slot.loading for slot in slots if slot.loading]
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)
        for slot in slots:
            if slot.living_worker is not None:
                self.begin_unload(slot.model, "stopping")
        unloading = [slot.unloading for slot in slots if slot.unloading]
        await asyncio.gather(*unloading, self.launcher.spare.drop(), return_exceptions=True)
        self.admission.close()

    # Requests --------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def acquire(self, model: str) -> AsyncIterator[WorkerHandle]:
        """A living worker of the model, which stays while the request runs. Raises `Busy`, `Unavailable`, `MemoryFull`,
        `ModelNotFound`, `ModelTooLarge`."""
        if self._under_way >= self._settings.engine.max_waiting_requests:
            raise Busy(f"{self._under_way} requests are under way already", retry_after_seconds=5)
        if self.admission.pressure == "critical":
            raise MemoryFull(
                f"the machine is critically short of memory, nothing new is begun: {ledger.holders(self.entries())}",
                retry_after_seconds=CRITICAL_RETRY_SECONDS,
            )
        card = self._catalogue.resolve(model)
        if card.problem:
            raise ModelUnusable(f"{card.id} cannot be used: {card.problem}", param="model")
        slot = self.slot(card)
        self._under_way += 1
        slot.users += 1
        try:
            yield await self._loaded(card, slot)
        finally:
            self._under_way -= 1
            slot.users -= 1
            slot.last_used = time.monotonic()
            if not slot.users:
                self.admission.note_change()
            self._forget(slot)

    async def _loaded(self, card: Card, slot: Slot) -> WorkerHandle:
        """The slot's living worker. Begins a load if there is none, or waits for the one under way."""
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
        """Fetch the model if need be, wait until the ledger admits it, and start its worker."""
        self.admission.refuse_too_large(wanted(card, self._kv_bytes(card)))
        if card.path is None:
            card = await fetch(card, self._downloads, slot, allowed=self._settings.engine.hub)
            await self._catalogue.refresh(at_once=True)
        assert card.path is not None
        kv_bytes = self._kv_bytes(card)
        wish = wanted(card, kv_bytes)
        slot.note_loading(card)
        if slot.unloading is not None:
            await asyncio.wait([slot.unloading])
        await self.admission.admit(
            wish,
            reserve=lambda: slot.reserve(wish.bytes),
            report_wait=slot.report_wait,
            is_wanted=lambda: slot.is_used,
        )
        started_at = time.monotonic()
        async with slot.moving:
            worker = await self.launcher.start(
                card,
                card.path,
                kv_bytes,
                left_bytes=self.admission.limit().ceiling_bytes - wish.bytes,
                on_process=slot.note_process,
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
            if slot.unloading is None:  # else the process before it still holds memory
                slot.note_gone()
            error = None if task.cancelled() else task.exception()
            no_room = isinstance(error, MemoryFull | ModelTooLarge)
            fetched = slot.state != "downloading"
            slot.state = "unloaded" if error is None or no_room else "failed"
            # A model that is not there or does not fit has not failed, nor has one whose hub cannot be reached.
            asked_wrongly = isinstance(error, DuetError) and error.status < 500
            if error is not None and fetched and not no_room and not asked_wrongly:
                slot.note_failed_load(crashed=isinstance(error, EndedWhileLoading))
        self.admission.note_change()
        self._forget(slot)

    def _note_death(self, slot: Slot, worker: WorkerHandle) -> None:
        """A worker ended by itself. It is noted once, however often this is called."""
        if slot.worker is not worker:
            return
        self.launcher.note_death(worker)
        slot.note_death(worker)
        self.admission.note_change()

    def begin_unload(self, model: str, reason: Unloading) -> None:
        """End the model's worker. Returns at once."""
        slot = self.slots[model]
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
            self.admission.note_change()
        logger.info(
            "model unloaded",
            extra={"action": "model_unloaded", "model": slot.model, "reason": reason},
        )

    # Operators -------------------------------------------------------------------------------------------------------

    async def load(self, name: str) -> Slot:
        """Load a model as a request would. Raises as `acquire`."""
        card = await self._catalogue.find(name)
        async with self.acquire(card.id):
            return self.slots[card.id]

    async def unload(self, name: str, *, force: bool) -> Slot:
        """Unload a model; returns when its memory is back. Raises `Conflict` while it has requests, unless `force`."""
        card = await self._catalogue.find(name)
        slot = self.slots.get(card.id) or Slot(card)
        if slot.users and not force:
            raise Conflict(f"{slot.model} has {slot.users} requests: force=true ends them", param="force")
        if slot.loading is not None:
            slot.loading.cancel()
            await asyncio.wait([slot.loading])
        if slot.worker is not None:
            if slot.worker.alive:
                self.begin_unload(slot.model, "asked")
            else:
                self._note_death(slot, slot.worker)
        if slot.unloading is not None:
            await asyncio.wait([slot.unloading])
        return slot

    def pin(self, name: str, pinned: bool) -> Slot:
        """Let a model stay once it is loaded, or let it go like any other."""
        slot = self.slot(self._catalogue.resolve(name))
        slot.pinned = "asked" if pinned else "no"
        self.admission.note_change()
        self._forget(slot)
        return slot

    def slot(self, card: Card) -> Slot:
        """The model's slot, new if need be. Every caller that is done with it must call `_forget`."""
        return self.slots.setdefault(card.id, Slot(card))

    def _forget(self, slot: Slot) -> None:
        if slot.forgettable:
            self.slots.pop(slot.model, None)

    # What is loaded --------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """The ledger's entries."""
        found = [slot.entry(self.preset, self.ttl_seconds(slot.card)) for slot in self.slots.values()]
        return [entry for entry in found if entry is not None]

    def workers(self) -> list[WorkerHandle]:
        """Workers that can take requests."""
        return [worker for slot in self.slots.values() if (worker := slot.living_worker) is not None]

    def ttl_seconds(self, card: Card) -> float | None:
        """How long a model stays loaded without being used; None: for good."""
        engine = self._settings.engine
        seconds = engine.ttl_seconds.get(card.id, card.ttl_seconds)
        return (engine.idle_unload_seconds if seconds is None else seconds) or None

    def _kv_bytes(self, card: Card) -> int:
        return kv_bytes_for(card, self.launcher.kv_memory_bytes, self.admission.limit().ceiling_bytes)

    def state(self, card: Card) -> ModelState:
        """Where the card's model is now, as clients see it."""
        slot = self.slots.get(card.id)
        if card.problem and (slot is None or slot.worker is None):
            return "unusable"
        state = slot.shown_state if slot is not None else "unloaded"
        return "absent" if state == "unloaded" and card.path is None else state

    def placement(self, card: Card) -> Placement:
        """All that operators see of one model."""
        slot = self.slots.get(card.id) or Slot(card)
        worker = slot.living_worker
        running = worker.active if worker is not None else 0
        now = time.monotonic()
        return Placement(
            id=card.id,
            state=self.state(card),
            pinned=slot.pinned != "no",
            resident=slot.pinned in ("preset", "resident"),
            estimate_bytes=wanted(card, self._kv_bytes(card)).bytes,
            charged_bytes=slot.charged_bytes,
            memory_bytes=slot.resident_bytes if slot.memory is not None else None,
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
            problem=card.problem,
        )
