"""The API's ports over worker processes: a request finds its model's worker, which is loaded if need be."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

from duet.errors import WorkerLost
from duet.settings import Settings
from engine.cards import Card
from engine.catalogue import Catalogue
from engine.downloads import Downloads
from engine.fleet.batch_pause import BatchPauseOrders
from engine.fleet.handle import WorkerHandle
from engine.kvstore.survey import clear
from engine.pool.admission import Probe
from engine.pool.residency import Residency
from engine.pool.residents import load_residents
from engine.pool.sweeps import Sweeps
from engine.pressure import read_memory
from engine.types import (
    Events,
    KvDirectory,
    KvStatus,
    ModelInfo,
    Placement,
    PoolStatus,
    Request,
)

WORKER_MODULE: Final = "engine.worker"


class Pool:
    """Implements `engine.types.Backend`. The gateway owns it; `open` and `close` bracket its life."""

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        downloads: Downloads,
        *,
        worker_module: str = WORKER_MODULE,
        probe: Probe = read_memory,
    ) -> None:
        self._settings, self._catalogue = settings.engine, catalogue
        self._residency = Residency(settings, catalogue, downloads, worker_module=worker_module, probe=probe)
        self._leases = self._residency.launcher.leases
        self._pauses = BatchPauseOrders()
        self._sweeps = Sweeps(settings.engine, self._residency)
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        await self._catalogue.refresh()
        await self._residency.open()
        residents = load_residents(self._settings.resident, self._catalogue, self._residency)
        self._tasks = {
            asyncio.create_task(self._sweeps.run(), name="sweeps"),
            asyncio.create_task(residents, name="residents"),
        }

    async def close(self) -> None:
        """End every load and every worker."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._residency.close()

    # Requests --------------------------------------------------------------------------------------------------------

    async def run(self, request: Request) -> Events:
        async with self._working(request) as worker, contextlib.aclosing(worker.run(request)) as events:
            async for event in events:
                yield event

    @contextlib.asynccontextmanager
    async def _working(self, request: Request) -> AsyncIterator[WorkerHandle]:
        """The model's worker. While it has a request that is not batch work, the batch work of all other workers pauses."""
        async with self._residency.acquire(request.model) as worker:
            self._pauses.begin(request.model, request.priority)
            self._order_pauses()
            try:
                yield worker
            finally:
                self._pauses.end(request.model, request.priority)
                self._order_pauses()

    def _order_pauses(self) -> None:
        for model, slot in self._residency.slots.items():
            if slot.living_worker is not None:
                slot.living_worker.pause_batch(self._pauses.pauses(model))

    # Models ----------------------------------------------------------------------------------------------------------

    async def list(self) -> Sequence[ModelInfo]:
        await self._catalogue.refresh()
        return [self._info(card) for card in self._catalogue.known()]

    async def resolve(self, name: str) -> ModelInfo:
        return self._info(await self._catalogue.find(name))

    def is_here(self, model: str) -> bool:
        return any(card.id == model and card.path is not None for card in self._catalogue.known())

    def progress(self, model: str) -> str:
        """What a request for this model waits for, in words; "" when it waits for nothing."""
        slot = self._residency.slots.get(model)
        return slot.progress if slot else ""

    def _info(self, card: Card) -> ModelInfo:
        slot = self._residency.slots.get(card.id)
        context = card.context
        if slot is not None and slot.worker is not None and slot.worker.ready.context:
            context = slot.worker.ready.context
        return ModelInfo(
            id=card.id,
            aliases=card.aliases,
            roles=card.roles,
            state=self._residency.state(card),
            bytes_on_disk=card.bytes_on_disk,
            context=context,
            demonstration=card.demonstration,
            description=card.description,
            review=card.review,
            defaults=card.defaults,
            ocr_prompt=card.ocr_prompt,
            stops=card.stop_strings,
            max_tokens=card.max_tokens,
            problem=card.problem,
        )

    # Operators -------------------------------------------------------------------------------------------------------

    async def refresh(self) -> None:
        await self._catalogue.refresh()

    def pool(self) -> PoolStatus:
        """Memory, and every model that is here or was asked for."""
        residency, admission = self._residency, self._residency.admission
        limit = admission.limit()
        cards = {card.id: card for card in self._catalogue.known() if card.path}
        cards |= {slot.model: slot.card for slot in residency.slots.values()}
        outlook = admission.outlook
        return PoolStatus(
            preset=self._catalogue.preset,
            limit_bytes=limit.bytes,
            ceiling_bytes=limit.ceiling_bytes,
            ceiling=limit.ceiling_name,
            charged_bytes=sum(slot.charged_bytes for slot in residency.slots.values()),
            resident_bytes=sum(slot.resident_bytes for slot in residency.slots.values()),
            available_bytes=outlook.available_bytes if outlook else None,
            swap_used_bytes=outlook.reading.swap_used_bytes if outlook else 0,
            pressure=admission.pressure,
            waiting_for_memory=admission.waiting,
            refused=admission.refused,
            spare=residency.launcher.spare.ready,
            models=tuple(residency.placement(card) for card in cards.values()),
        )

    def placement(self, name: str) -> Placement:
        return self._residency.placement(self._catalogue.resolve(name))

    async def load(self, name: str) -> Placement:
        return self._residency.placement((await self._residency.load(name)).card)

    async def unload(self, name: str, *, force: bool = False) -> Placement:
        return self._residency.placement((await self._residency.unload(name, force=force)).card)

    def pin(self, name: str, pinned: bool) -> Placement:
        return self._residency.placement(self._residency.pin(name, pinned).card)

    # KV --------------------------------------------------------------------------------------------------------------

    async def kv(self) -> KvStatus:
        """KV on this machine: what loaded models hold, and the directories under the home."""
        found = await asyncio.to_thread(self._leases.reports)
        slots = self._residency.slots.items()
        workers = {model: slot.worker.kv for model, slot in slots if slot.worker and slot.worker.alive}
        listed = tuple(
            KvDirectory(item.path.name, item.model, item.owned, item.contents.bytes, item.contents.entries,
                        item.contents.written_today)
            for item in found
        )  # fmt: skip
        return KvStatus(self._leases.caps.disk_bytes, self._leases.caps.write_bytes_a_day, listed, workers)

    async def clear_kv(self, model: str | None) -> int:
        """Forget the KV of one model or of all, loaded or not. Returns the number of entries that no worker held."""
        wanted = None if model is None else (await self._catalogue.find(model)).id
        for name, slot in [*self._residency.slots.items()]:
            if wanted not in (None, name):
                continue
            async with slot.moving:  # one that is just being loaded would keep what it finds
                if slot.worker is not None and slot.worker.alive:
                    with contextlib.suppress(WorkerLost):  # gone: its directory is cleared below
                        await slot.worker.clear_kv()
        return await asyncio.to_thread(clear, self._leases.root, wanted)
