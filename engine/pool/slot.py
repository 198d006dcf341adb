"""One model's place in the pool: its worker if it has one, the memory it takes, and what happened to it lately."""

from __future__ import annotations

import asyncio
import time
from typing import Final, Literal

from duet.errors import Unavailable
from duet.sizes import gigabytes
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
"""Why a model stays loaded: the preset or the settings make it resident, or an operator pinned it."""


class Slot:
    """Owned by `Residency`.

    `loading` is the one load under way, shared by all requests that wait for it. It outlives them: a client that gives up and
    comes again finds the load further on. `unloading` is the end of the last process under way. `moving` is held while a process
    of the model comes or goes, so that two processes never hold its memory at once.

    `reserved_bytes` is the estimate that was admitted. From then until the last process has ended the slot is in the ledger.
    `process` is the id of that process, known before its model is loaded. `users` counts requests that have the model or wait
    for it.
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
        self.reserved_bytes: int | None = None
        self.process: int | None = None
        self.last_used = self.loaded_at = time.monotonic()
        self.failures = 0
        self.broken_until = 0.0
        self.loads = self.crashes = 0
        self.unloads: dict[Unloading, int] = {}

    @property
    def model(self) -> str:
        return self.card.id

    @property
    def living_worker(self) -> WorkerHandle | None:
        """Its worker if that can take requests."""
        return self.worker if self.worker is not None and self.worker.alive else None

    @property
    def is_used(self) -> bool:
        return self.users > 0

    # The memory it takes ---------------------------------------------------------------------------------------------

    @property
    def memory(self) -> MemoryReport | None:
        """The last report of its process; None without a process or before its first report."""
        worker = self.worker or self.leaving
        return worker.memory if worker is not None else None

    @property
    def resident_bytes(self) -> int:
        """Memory of its process by its report, or by its footprint until there is one. What a load has taken is no longer
        available on the machine, so it must be counted as ours."""
        report = self.memory
        if report is not None:
            return report.resident_bytes
        return footprint_bytes(self.process) if self.process is not None else 0

    @property
    def charged_bytes(self) -> int:
        """By the ledger's rules; 0 when the slot is not in the ledger."""
        if self.reserved_bytes is None:
            return 0
        worker = self.worker or self.leaving
        if worker is None or worker.memory is None:
            return self.reserved_bytes
        promised = worker.lease.memory_bytes if worker.lease is not None else 0
        return charge(self.reserved_bytes, worker.memory.resident_bytes, promised, worker.kv.memory_bytes)

    def entry(self, preset: Preset, ttl_seconds: float | None) -> Entry | None:
        """Its entry in the ledger; None when it takes no memory."""
        if self.reserved_bytes is None:
            return None
        gives_way = preset.asr_yields and self.card.worker_role == "asr" and self.pinned != "asked"
        return Entry(
            model=self.model,
            bytes=self.charged_bytes,
            users=self.users,
            pinned=self.pinned != "no",
            moving=self.living_worker is None,
            leaving=self.leaving is not None,
            large=is_large(self.card, self.reserved_bytes),
            yields=self.pinned == "preset",
            gives_way=gives_way,
            loaded_at=self.loaded_at,
            last_used=self.last_used,
            ttl_seconds=ttl_seconds,
        )

    # A load, step by step --------------------------------------------------------------------------------------------

    def note_loading(self, card: Card) -> None:
        """A load begins; `card` has the model's folder."""
        self.card, self.state = card, "loading"
        self.report_wait("")

    def report_wait(self, reason: str) -> None:
        """Tell waiting streams what the load waits for, in words; "" when for nothing but the load itself."""
        loading = f"loading {self.model} ({gigabytes(self.card.memory_bytes)})"
        self.progress = f"{loading}: {reason}" if reason else loading

    def reserve(self, size: int) -> None:
        """The ledger admitted its estimate."""
        self.reserved_bytes = size
        self.report_wait("")

    def note_process(self, pid: int) -> None:
        """A process was started for it."""
        self.process = pid

    def note_loaded(self, worker: WorkerHandle) -> None:
        self.worker, self.state = worker, "loaded"
        self.loads += 1
        self.loaded_at = self.last_used = time.monotonic()

    def note_failed_load(self, *, crashed: bool) -> None:
        """Its process could not load it. `crashed`: the process ended by itself."""
        self.crashes += crashed
        self._note_failure()

    # What happened to it ---------------------------------------------------------------------------------------------

    @property
    def rests_seconds(self) -> float:
        """How long it still rests after several failures in a row."""
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
        """A new slot would say the same: nobody uses it, no process is or was there, and it has no failures. So names that a
        client makes up leave nothing behind."""
        here = self.users or self.loading or self.unloading or self.worker or self.reserved_bytes is not None
        return not (here or self.pinned != "no" or self.loads or self.failures)

    def _note_failure(self) -> None:
        self.failures += 1
        if self.failures >= CRASHES_BEFORE_BREAK:
            self.broken_until = time.monotonic() + BREAK_SECONDS

    def note_death(self, worker: WorkerHandle) -> None:
        """Its worker ended by itself. The failures before do not count if this worker had lived long."""
        self.worker, self.state = None, "unloaded"
        self.note_gone()
        self.crashes += 1
        if time.monotonic() - worker.started_at > HEALTHY_SECONDS:
            self.failures = 0
        self._note_failure()

    def note_leaving(self, worker: WorkerHandle, reason: Unloading) -> None:
        """Its worker is being ended. It leaves the slot first: a request that comes meanwhile waits for a new worker."""
        self.worker, self.leaving, self.state, self.failures = None, worker, "unloaded", 0
        self.unloads[reason] = self.unloads.get(reason, 0) + 1

    def note_gone(self) -> None:
        """Its process has ended, and its memory is back."""
        self.leaving, self.reserved_bytes, self.process = None, None, None

    @property
    def shown_state(self) -> ModelState:
        """Its state for clients. A failed model is shown as unloaded after its rest: a client that looks before it asks must not
        stay away for ever."""
        if self.worker is not None and not self.worker.alive:
            return "unloaded"
        if self.state == "failed" and time.monotonic() - self.last_used > BREAK_SECONDS:
            return "unloaded"
        return self.state


def is_large(card: Card, bytes_needed: int) -> bool:
    """Whether a model counts as large by the rules of presets."""
    return card.worker_role == "chat" and bytes_needed >= LARGE_BYTES


def kv_bytes_for(card: Card, kv_memory_bytes: int, ceiling_bytes: int) -> int:
    """Bytes of the KV tier in memory for this card's model, if every chat model is meant to have `kv_memory_bytes`."""
    if card.worker_role != "chat":
        return 0
    return kv_that_fits(card.bytes_on_disk or card.memory_bytes, kv_memory_bytes, ceiling_bytes)


def wanted(card: Card, kv_memory_bytes: int) -> Wanted:
    """What a card's model will take: by its weights when they are here, else by what the card says."""
    if card.bytes_on_disk:
        needed = estimate(card.bytes_on_disk, kv_memory_bytes)
    else:
        needed = max(card.memory_bytes, WORKER_BYTES) + kv_memory_bytes
    return Wanted(card.id, needed, large=is_large(card, needed))
