"""Which model is where: loaded at the first request, one process each, unloaded by process exit when idle.

The pool is the API's `Backend`. Its slots are the only place that knows worker processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import struct
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

from duet.errors import Busy, DuetError, ModelNotFound, Unavailable, WorkerLost
from duet.settings import Settings
from duet.supervise import HEALTHY_SECONDS
from engine.cards import Card, Catalogue, classify
from engine.downloads import Downloads
from engine.kvstore.directory import clear
from engine.kvstore.fingerprint import fingerprint
from engine.kvstore.leases import FOLDER, Caps, Lease, Leases
from engine.types import (
    EmbeddingRequest,
    EmbeddingResult,
    Event,
    GenerationRequest,
    KvDirectory,
    KvStatus,
    ModelInfo,
    TranscriptionRequest,
    TranscriptionResult,
)
from engine.workers.handle import WorkerHandle

logger = logging.getLogger(__name__)

State = Literal["absent", "unloaded", "downloading", "loading", "loaded", "failed"]
CRASHES_BEFORE_BREAK = 3
BREAK_SECONDS = 30.0
"""After three crashes or failed loads in a row a model rests, so that it does not take the machine down with it."""
WORKER_MODULE = "engine.worker"


class _Slot:
    """One model: its worker if it has one, and what happened to it lately.

    `loading` is the one load under way, shared by all who wait for it. It outlives them: a client with a short patience
    that comes again finds the load further on. `moving` is held while a process of the model comes or goes, so that two
    never hold its memory at once.
    """

    def __init__(self) -> None:
        self.moving = asyncio.Lock()
        self.loading: asyncio.Task[WorkerHandle] | None = None
        self.worker: WorkerHandle | None = None
        self.state: State = "unloaded"
        self.progress = ""
        self.users = 0
        self.last_used = time.monotonic()
        self.failures = 0
        self.broken_until = 0.0


class Pool:
    """Implements `engine.types.Backend`. Owned by the gateway; `open` and `close` bracket its life."""

    def __init__(
        self, settings: Settings, catalogue: Catalogue, downloads: Downloads, *, worker_module: str = WORKER_MODULE
    ) -> None:
        self._settings, self._catalogue, self._downloads = settings, catalogue, downloads
        self._worker_module = worker_module
        self._slots: dict[str, _Slot] = {}
        self._waiting = 0
        self._sweeper: asyncio.Task[None] | None = None
        self._unloading: set[asyncio.Task[None]] = set()
        self._leases = _leases(settings)

    async def open(self) -> None:
        await asyncio.to_thread(self._leases.trim)
        self._sweeper = asyncio.create_task(self._sweep(), name="idle-sweeper")

    async def close(self) -> None:
        """End every load and every worker."""
        slots = self._slots.values()
        tasks: list[asyncio.Task[Any]] = [slot.loading for slot in slots if slot.loading]
        tasks += [self._sweeper] if self._sweeper else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._unloading, return_exceptions=True)
        await asyncio.gather(*(slot.worker.stop() for slot in slots if slot.worker))

    # Backend -----------------------------------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        async with self._worker(request.model) as worker:
            events = worker.generate(request)
            try:
                async for event in events:
                    yield event
            finally:
                await events.aclose()  # type: ignore[attr-defined]

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResult:
        async with self._worker(request.model) as worker:
            result = await worker.call(request)
            assert isinstance(result, EmbeddingResult)
            return result

    async def transcribe(self, request: TranscriptionRequest) -> TranscriptionResult:
        async with self._worker(request.model) as worker:
            result = await worker.call(request)
            assert isinstance(result, TranscriptionResult)
            return result

    def models(self) -> list[ModelInfo]:
        return [self._info(card) for card in self._catalogue.known()]

    def resolve(self, name: str) -> ModelInfo:
        return self._info(self._catalogue.resolve(name))

    def progress(self, model: str) -> str:
        """What a request for this model waits for, in words; "" when it waits for nothing."""
        slot = self._slots.get(model)
        return slot.progress if slot else ""

    async def kv(self, *, directories: bool = True) -> KvStatus:
        """KV on this machine: what loaded models hold, and with `directories` those under the home."""
        found = await asyncio.to_thread(self._leases.reports) if directories else []
        workers = {model: slot.worker.kv for model, slot in self._slots.items() if slot.worker and slot.worker.alive}
        listed = tuple(
            KvDirectory(item.path.name, item.model, item.owned, item.contents.bytes, item.contents.entries,
                        item.contents.written_today)
            for item in found
        )  # fmt: skip
        return KvStatus(self._leases.caps.disk_bytes, self._leases.caps.write_bytes_a_day, listed, workers)

    async def clear_kv(self, model: str | None) -> int:
        """Forget the KV of one model or of all, loaded or not. Returns the number of entries that no worker held."""
        wanted = None if model is None else self._catalogue.resolve(model).id
        for name, slot in [*self._slots.items()]:
            if wanted not in (None, name):
                continue
            async with slot.moving:  # one that is just being loaded would keep what it finds
                if slot.worker is not None and slot.worker.alive:
                    with contextlib.suppress(WorkerLost):  # gone: its directory is cleared below
                        await slot.worker.clear_kv()
        return await asyncio.to_thread(clear, self._leases.root, wanted)

    # Slots -------------------------------------------------------------------------------------------------------

    def _info(self, card: Card) -> ModelInfo:
        slot = self._slots.get(card.id)
        state: State = "unloaded" if card.path else "absent"
        if slot is not None and (slot.state != "unloaded" or card.path):
            state = "unloaded" if slot.worker and not slot.worker.alive else slot.state
            if state == "failed" and time.monotonic() - slot.last_used > BREAK_SECONDS:
                state = "unloaded"  # worth another try: callers that ask first would never come again
        context = card.context
        if slot is not None and slot.worker is not None and slot.worker.ready.context:
            context = slot.worker.ready.context
        return ModelInfo(
            id=card.id,
            aliases=card.aliases,
            roles=card.roles,
            state=state,
            bytes_on_disk=card.bytes_on_disk,
            context=context,
            demonstration=card.demonstration,
            description=card.description,
            review=card.review,
            defaults=card.defaults,
            ocr_prompt=card.ocr_prompt,
            stops=card.stops,
            max_tokens=card.max_tokens,
        )

    @contextlib.asynccontextmanager
    async def _worker(self, model: str) -> AsyncIterator[WorkerHandle]:
        """A living worker of the model, kept while the request runs. Raises `Busy`, `Unavailable`, `ModelNotFound`."""
        if self._waiting >= self._settings.engine.max_waiting_requests:
            raise Busy(f"{self._waiting} requests are under way already", retry_after_seconds=5)
        card = self._catalogue.resolve(model)
        slot = self._slots.setdefault(card.id, _Slot())
        self._waiting += 1
        slot.users += 1
        try:
            yield await self._loaded(card, slot)
        finally:
            self._waiting -= 1
            slot.users -= 1
            slot.last_used = time.monotonic()

    async def _loaded(self, card: Card, slot: _Slot) -> WorkerHandle:
        if slot.worker is not None:
            if slot.worker.alive:
                return slot.worker
            self._note_death(slot, slot.worker)
        if slot.loading is None:
            if (rest := slot.broken_until - time.monotonic()) > 0:
                raise Unavailable(
                    f"{card.id} failed {slot.failures} times in a row and rests",
                    param="model",
                    retry_after_seconds=int(rest) + 1,
                )
            slot.loading = asyncio.create_task(self._load(card, slot), name=f"load {card.id}")
            slot.loading.add_done_callback(lambda task: self._note_load(slot, task))
        return await asyncio.shield(slot.loading)

    def _note_load(self, slot: _Slot, task: asyncio.Task[WorkerHandle]) -> None:
        slot.loading, slot.progress, slot.last_used = None, "", time.monotonic()
        if task.cancelled():
            slot.state = "unloaded"
        elif (error := task.exception()) is not None:
            slot.state = "failed"
            if not isinstance(error, DuetError) or error.status >= 500:  # asking for what is not there breaks nothing
                self._note_failure(slot)
        else:
            slot.worker, slot.state = task.result(), "loaded"

    def _note_death(self, slot: _Slot, worker: WorkerHandle) -> None:
        """A worker that ended by itself. One that had lived for long does not count as failing in a row."""
        if worker.lease is not None:
            self._leases.give_back(worker.lease)
        slot.worker, slot.state = None, "unloaded"
        if time.monotonic() - worker.started_at > HEALTHY_SECONDS:
            slot.failures = 0
        self._note_failure(slot)

    async def _load(self, card: Card, slot: _Slot) -> WorkerHandle:
        path, role = card.path, card.worker_role
        if path is None:
            path = await self._download(card, slot)
            roles = classify(path)
            role = "asr" if "asr" in roles else "embedding" if "embedding" in roles else "chat"
        slot.state, slot.progress = "loading", f"loading {card.id} ({card.memory_bytes / 1e9:.1f} GB)"
        started_at = time.monotonic()
        async with slot.moving:
            lease = await asyncio.to_thread(self._lease, path) if role == "chat" else None
            try:
                worker = await WorkerHandle.start(
                    self._worker_module,
                    model=card.id,
                    path=path,
                    role=role,
                    max_rows=self._settings.engine.max_rows,
                    chunk_tokens=self._settings.engine.prefill_chunk_tokens,
                    log_level=self._settings.log_level,
                    timeout_seconds=self._settings.engine.load_timeout_seconds,
                    lease=lease,
                    kv_bits=card.kv_bits,
                )
            except BaseException:
                if lease is not None:
                    self._leases.give_back(lease)
                raise
        seconds = round(time.monotonic() - started_at, 1)
        extra = {
            "action": "model_loaded",
            "model": card.id,
            "seconds": seconds,
            "weight_bytes": worker.ready.weight_bytes,
        }
        logger.info("model loaded", extra=extra)
        return worker

    async def _download(self, card: Card, slot: _Slot) -> Path:
        if card.repo is None or not self._settings.engine.hub:
            raise ModelNotFound(f"{card.id} is not on this machine and downloads are off (engine.hub)", param="model")
        slot.state, slot.progress = "downloading", f"downloading {card.repo}"
        return await self._downloads.fetch(card.repo, card.revision, on_progress=_reporter(card.repo, slot))

    def _lease(self, path: Path) -> Lease:
        """What a worker of this folder may do with KV. Without a fingerprint nothing may be shared with what was before."""
        try:
            return self._leases.grant(fingerprint(path))
        except (OSError, ValueError, struct.error, KeyError, TypeError) as error:
            logger.warning(
                "%s has no fingerprint, its KV stays in memory: %s", path.name, error, extra={"action": "kv_disk_off"}
            )
            return self._leases.memory_only(secrets.token_hex(16), f"its weights have no fingerprint: {error}")

    def _note_failure(self, slot: _Slot) -> None:
        slot.failures += 1
        if slot.failures >= CRASHES_BEFORE_BREAK:
            slot.broken_until = time.monotonic() + BREAK_SECONDS

    async def _unload(self, slot: _Slot, worker: WorkerHandle) -> None:
        try:
            await worker.stop()
        finally:
            slot.moving.release()
            if worker.lease is not None:
                self._leases.give_back(worker.lease)

    async def _sweep(self) -> None:
        """Unload what has been idle for long, and see workers that died while nobody asked."""
        idle_seconds = self._settings.engine.idle_unload_seconds
        while True:
            await asyncio.sleep(min(5.0, idle_seconds / 4))
            for model, slot in list(self._slots.items()):
                worker = slot.worker
                if worker is None or slot.users:
                    continue
                if not worker.alive:
                    self._note_death(slot, worker)
                elif time.monotonic() - slot.last_used >= idle_seconds:
                    # Out of the slot first: a request that comes meanwhile waits in `_load` for the process to end.
                    slot.worker, slot.state, slot.failures = None, "unloaded", 0
                    await slot.moving.acquire()  # at once, so that no load gets between; `_unload` gives it back
                    unloading = asyncio.create_task(self._unload(slot, worker), name=f"unload {model}")
                    self._unloading.add(unloading)
                    unloading.add_done_callback(self._unloading.discard)
                    await asyncio.shield(unloading)  # it has KV to write, also when the engine ends meanwhile
                    logger.info("model unloaded", extra={"action": "model_unloaded", "model": model})


def _leases(settings: Settings) -> Leases:
    engine = settings.engine
    memory = engine.kv_ram_bytes
    if memory is None:
        memory = min(4 << 30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 16)
    caps = Caps(engine.kv_disk_bytes, engine.kv_write_bytes_a_day, engine.kv_free_bytes, engine.kv_age_days * 86_400)
    return Leases(settings.home / FOLDER, caps, memory_bytes=memory, flush_seconds=engine.kv_flush_seconds)


def _reporter(repo: str, slot: _Slot) -> Callable[[int, int], None]:
    """Progress for the waiting stream, and a log line every tenth."""
    logged = -1

    def report(done: int, total: int) -> None:
        nonlocal logged
        percent = 100 * done // max(total, 1)
        slot.progress = f"downloading {repo}: {percent}% of {total / 1e9:.2f} GB"
        if percent // 10 > logged:
            logged = percent // 10
            logger.info(
                "downloading", extra={"action": "downloading", "repo": repo, "percent": percent, "bytes": total}
            )

    return report
