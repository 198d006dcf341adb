"""Starts worker processes: what each is told, what it may do with KV, and the spare process that makes a start quick."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from duet.settings import Settings
from engine.cards import Card
from engine.fleet.handle import WorkerHandle
from engine.fleet.spare import Spare
from engine.fleet.starting import start_worker
from engine.folders.reading import Problem
from engine.kvstore.fingerprint import fingerprint
from engine.kvstore.leases import FOLDER, Caps, Lease, Leases
from engine.worker_config import BatchLimits, WorkerConfig

logger = logging.getLogger(__name__)

LEAST_ACTIVE_KV_BYTES: Final = 512 << 20
"""KV for running requests that even a model which fills the machine gets: with less it could not answer at all."""


class Launcher:
    """Owned by `Residency`. Owns the leases and the spare. `total_bytes` is the memory of this machine or of its control
    group."""

    def __init__(self, settings: Settings, module: str, *, total_bytes: int) -> None:
        self._settings, self._module, self._total_bytes = settings, module, total_bytes
        engine = settings.engine
        self.kv_memory_bytes = min(4 << 30, total_bytes // 16) if engine.kv_ram_bytes is None else engine.kv_ram_bytes
        """Bytes of KV that a chat model may keep in memory."""
        self.leases = _leases(settings, self.kv_memory_bytes)
        self.spare = Spare(module)

    async def start(
        self, card: Card, path: Path, kv_memory_bytes: int, *, left_bytes: int, on_process: Callable[[int], None]
    ) -> WorkerHandle:
        """A worker with the card's model loaded from `path`. `on_process` gets the process id before the model is loaded.
        `left_bytes` is what the limit of all models leaves beside this one. Raises `Unavailable`."""
        lease = await self._lease(path, kv_memory_bytes) if card.worker_role == "chat" else None
        engine = self._settings.engine
        try:
            return await start_worker(
                self._module,
                worker_config(card, path, lease, self._settings, total_bytes=self._total_bytes, left_bytes=left_bytes),
                timeout_seconds=engine.load_timeout_seconds,
                silence_seconds=engine.worker_silence_seconds,
                spare=self.spare.take(),
                on_process=on_process,
            )
        except BaseException:
            self._give_back(lease)
            raise

    async def stop(self, worker: WorkerHandle) -> None:
        """End a worker in order, and take back its lease."""
        try:
            await worker.stop()
        finally:
            self.note_death(worker)

    def note_death(self, worker: WorkerHandle) -> None:
        """A worker has ended: take back its lease."""
        self._give_back(worker.lease)

    def _give_back(self, lease: Lease | None) -> None:
        if lease is not None:
            self.leases.give_back(lease)

    async def _lease(self, path: Path, memory_bytes: int) -> Lease:
        """A thread cannot be stopped: if the load is cancelled meanwhile, the lease is given back once it is granted."""
        granting = asyncio.create_task(asyncio.to_thread(self._granted, path))
        try:
            return msgspec.structs.replace(await asyncio.shield(granting), memory_bytes=memory_bytes)
        except asyncio.CancelledError:
            granting.add_done_callback(lambda task: self._give_back(task.result()))
            raise

    def _granted(self, path: Path) -> Lease:
        """What a worker of this folder may do with KV. Without a fingerprint it must not share KV with earlier workers."""
        try:
            return self.leases.grant(fingerprint(path))
        except (OSError, Problem) as error:
            logger.warning(
                "%s has no fingerprint, its KV stays in memory: %s", path.name, error, extra={"action": "kv_disk_off"}
            )
            return self.leases.memory_only(secrets.token_hex(16), f"its weights have no fingerprint: {error}")


def worker_config(
    card: Card, path: Path, lease: Lease | None, settings: Settings, *, total_bytes: int, left_bytes: int
) -> WorkerConfig:
    """What the worker of a card's model is told: the model lies in `path`, the machine has `total_bytes` of memory, and the limit
    of all models leaves `left_bytes` beside this one."""
    engine = settings.engine
    return WorkerConfig(
        model=card.id,
        path=os.fsencode(path),
        role=card.worker_role,
        options=card.options,
        batch=BatchLimits(max_rows=engine.max_rows, chunk_tokens=engine.prefill_chunk_tokens),
        kv=lease,
        active_kv_bytes=active_kv_bytes(engine.kv_active_bytes or total_bytes // 4, left_bytes),
        wired_limit_bytes=wired_limit_bytes(engine.wired_limit, card.bytes_on_disk),
        log_level=settings.log_level,
    )


def wired_limit_bytes(wished: str | int, weight_bytes: int) -> int:
    """Bytes that a worker asks Metal to keep wired; 0: none. `auto`: the weights, because every step reads them."""
    if isinstance(wished, int):
        return wished
    return weight_bytes if wished == "auto" else 0


def active_kv_bytes(wished_bytes: int, left_bytes: int) -> int:
    """Bytes of KV for a worker's running requests. No estimate counts them, so what the model leaves of the limit bounds them."""
    return min(wished_bytes, max(LEAST_ACTIVE_KV_BYTES, left_bytes))


def _leases(settings: Settings, memory_bytes: int) -> Leases:
    engine = settings.engine
    caps = Caps(engine.kv_disk_bytes, engine.kv_write_bytes_a_day, engine.kv_free_bytes, engine.kv_age_days * 86_400)
    return Leases(settings.home / FOLDER, caps, memory_bytes=memory_bytes, flush_seconds=engine.kv_flush_seconds)
