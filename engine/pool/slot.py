"""One model's place in the pool: its worker if it has one, what it holds, and what happened to it lately."""

from __future__ import annotations

import asyncio
import time
from typing import Final, Literal

from duet.errors import Unavailable
from duet.supervise.backoff import HEALTHY_SECONDS
from engine.cards import Card
from engine.fleet.handle import WorkerHandle
from engine.pool.ledger import WORKER_BYTES, Entry, Wanted, charge, estimate, kv_that_fits
from engine.presets import LARGE_BYTES, Preset
from engine.pressure import footprint_bytes
from engine.types import MemoryReport, ModelState, Unloading

CRASHES_BEFORE_BREAK: Final = 3
BREAK_SECONDS: Final = 30.0
"""After three crashes or failed loads in a row a model rests, so that it does not take the machine down with it."""
Pinned = Literal["no", "preset", "resident", "asked"]
"""Why a model stays loaded: it is of the preset's resident set or of the settings', or somebody asked for it at run time."""


class Slot:
    """Owned by the pool.

    `loading` is the one load under way, shared by all who wait for it. It outlives them: a client with a short patience
    that comes again finds the load further on. `unloading` is the end of its last process under way. `moving` is held while
    a process of the model comes or goes, so that two never hold its memory at once.

    `booked_bytes` is the estimate that was admitted; from then until the last process has ended the slot is in the ledger.
    `process` is the id of that process, from before its model is loaded.
    """

    def __init__(self, card: Card) -> None:
        self.card = card
        self.moving = asyncio.Lock()
        self.loading: asyncio.Task[WorkerHandle] | None = None
        self.unloading: asyncio.Task[None] | None = None
        self.worker: WorkerHandle | None = None
        self.leaving: WorkerHandle | None = None
        self.state: ModelState = "unloaded"
        self.progress = ""
        self.users = 0
        self.pinned: Pinned = "no"
        self.booked_bytes: int | None = None
        self.process: int | None = None
        self.last_used = self.loaded_at = time.monotonic()
        self.failures = 0
        self.broken_until = 0.0
        self.loads = self.crashes = 0
        self.unloads: dict[Unloading, int] = {}

    @property
    def model(self) -> str:
        return self.card.id

    # What it holds ---------------------------------------------------------------------------------------------------

    @property
    def memory(self) -> MemoryReport | None:
        """What its process last said that it holds; None without a process, or before it said anything."""
        worker = self.worker or self.leaving
        return worker.memory if worker is not None else None

    @property
    def held_bytes(self) -> int:
        """By its process's report; by its footprint until there is one: what a load has taken is no longer available, so it
        must be known to be ours."""
        report = self.memory
        if report is not None:
            return report.held_bytes
        return footprint_bytes(self.process) if self.process is not None else 0

    @property
    def charged_bytes(self) -> int:
        """By the ledger's rules; 0 when the slot is not in the book."""
        if self.booked_bytes is None:
            return 0
        worker = self.worker or self.leaving
        if worker is None or worker.memory is None:
            return self.booked_bytes
        promised = worker.lease.memory_bytes if worker.lease is not None else 0
        return charge(self.booked_bytes, worker.memory.held_bytes, promised, worker.kv.memory_bytes)

    def entry(self, preset: Preset, ttl_seconds: float | None) -> Entry | None:
        """Its line in the ledger; None when it holds nothing."""
        if self.booked_bytes is None:
            return None
        settled = self.worker is not None and self.worker.alive
        gives_way = preset.asr_yields and self.card.worker_role == "asr" and self.pinned != "asked"
        return Entry(
            model=self.model,
            bytes=self.charged_bytes,
            users=self.users,
            pinned=self.pinned != "no",
            moving=not settled,
            leaving=self.leaving is not None,
            large=is_large(self.card, self.booked_bytes),
            yields=self.pinned == "preset",
            gives_way=gives_way,
            loaded_at=self.loaded_at,
            last_used=self.last_used,
            ttl_seconds=ttl_seconds,
        )

    # What happened to it ---------------------------------------------------------------------------------------------

    @property
    def rests_seconds(self) -> float:
        """How long it still rests after failures in a row."""
        return max(0.0, self.broken_until - time.monotonic())

    def check_rested(self) -> None:
        """Raise `Unavailable` while the model rests."""
        if (rest := self.rests_seconds) > 0:
            raise Unavailable(
                f"{self.model} failed {self.failures} times in a row and rests",
                param="model",
                retry_after_seconds=int(rest) + 1,
            )

    @property
    def forgettable(self) -> bool:
        """Nobody uses it, no process is or was there, and no failure of one counts: a slot that is made anew says as much. So a
        name that somebody thought up leaves nothing behind."""
        here = self.users or self.loading or self.unloading or self.worker or self.booked_bytes is not None
        return not (here or self.pinned != "no" or self.loads or self.failures)

    def note_loaded(self, worker: WorkerHandle) -> None:
        self.worker, self.state = worker, "loaded"
        self.loads += 1
        self.loaded_at = self.last_used = time.monotonic()

    def note_failed_load(self, *, crashed: bool) -> None:
        """Its process could not load it. `crashed`: it ended by itself."""
        self.crashes += crashed
        self._note_failure()

    def _note_failure(self) -> None:
        self.failures += 1
        if self.failures >= CRASHES_BEFORE_BREAK:
            self.broken_until = time.monotonic() + BREAK_SECONDS

    def note_death(self, worker: WorkerHandle) -> None:
        """Its worker ended by itself. One that had lived for long does not count as failing in a row."""
        self.worker, self.state = None, "unloaded"
        self.note_gone()
        self.crashes += 1
        if time.monotonic() - worker.started_at > HEALTHY_SECONDS:
            self.failures = 0
        self._note_failure()

    def note_leaving(self, worker: WorkerHandle, reason: Unloading) -> None:
        """Out of the slot first: a request that comes while the process ends waits for a new one."""
        self.worker, self.leaving, self.state, self.failures = None, worker, "unloaded", 0
        self.unloads[reason] = self.unloads.get(reason, 0) + 1

    def note_gone(self) -> None:
        """Its process has ended, and its memory is back."""
        self.leaving, self.booked_bytes, self.process = None, None, None

    @property
    def shown_state(self) -> ModelState:
        """What to tell of it: a failed model is worth another try after its rest, or callers that ask first never come again."""
        if self.worker is not None and not self.worker.alive:
            return "unloaded"
        if self.state == "failed" and time.monotonic() - self.last_used > BREAK_SECONDS:
            return "unloaded"
        return self.state


def is_large(card: Card, bytes_needed: int) -> bool:
    """Whether a model counts as large by the rules of presets."""
    return card.worker_role == "chat" and bytes_needed >= LARGE_BYTES


def kv_bytes_for(card: Card, kv_memory_bytes: int, ceiling_bytes: int) -> int:
    """The KV tier in memory that a card's model gets, of the `kv_memory_bytes` that every chat model is meant to have."""
    if card.worker_role != "chat":
        return 0
    return kv_that_fits(card.bytes_on_disk or card.memory_bytes, kv_memory_bytes, ceiling_bytes)


def wanted(card: Card, kv_memory_bytes: int) -> Wanted:
    """What a card's model will hold: by its weights when they are here, else what the card says."""
    if card.bytes_on_disk:
        needed = estimate(card.bytes_on_disk, kv_memory_bytes)
    else:
        needed = max(card.memory_bytes, WORKER_BYTES) + kv_memory_bytes
    return Wanted(card.id, needed, large=is_large(card, needed))
