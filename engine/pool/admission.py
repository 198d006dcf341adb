"""Loads that wait for memory: what the machine has, what the ledger decides, and who is next."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from duet.errors import MemoryFull, ModelTooLarge
from duet.settings import EngineSettings
from engine.catalogue import physical_memory_bytes
from engine.pool import ledger
from engine.pool.ledger import Admit, Entry, Evict, Limit, Refuse, Rules, Wanted
from engine.presets import GIB, Preset
from engine.pressure import Outlook, Pressure, ProbeFailed, Reading, next_outlook

logger = logging.getLogger(__name__)

SAMPLE_SECONDS: Final = 1.0
"""A load that waits reads the machine's memory again after this long, even when nothing that we know of has changed."""
EVICTION_SECONDS: Final = 15.0
"""A load waits this long for a model that is being unloaded for it, whatever the settings say: that model writes its KV first."""
WARNING_RESERVE_FACTOR: Final = 2
"""Under a warning the reserve is this many times larger: the warning says that other programs want more than they have."""
Probe = Callable[[], Reading]


def total_bytes(probe: Probe) -> int:
    """The memory of this machine, or what this process's control group may have of it."""
    try:
        return probe().total_bytes
    except ProbeFailed as error:
        logger.debug("the machine's size is asked of the system: %s", error, extra={"action": "probe_failed"})
        return physical_memory_bytes()


class Admission:
    """Owned by `Residency`. `entries` and `resident_bytes` ask the slots. `evict` begins to unload a model and returns at once.

    Waiting loads stand in line. Each decides again whenever a model has come, gone or become idle. Models are unloaded for the
    oldest load only. A later load goes first if it takes nothing from the oldest.
    """

    def __init__(
        self,
        settings: EngineSettings,
        preset: Preset,
        *,
        probe: Probe,
        entries: Callable[[], list[Entry]],
        resident_bytes: Callable[[], int],
        evict: Callable[[str], None],
    ) -> None:
        self._settings, self._preset = settings, preset
        self._probe, self._entries, self._resident_bytes, self._evict = probe, entries, resident_bytes, evict
        self.rules = Rules(settings.minimum_residency_seconds, one_large=preset.one_large)
        self.outlook: Outlook | None = None
        self.working_set_bytes = 0
        """What Metal recommends for all processes together, as workers report it; 0: unknown."""
        self.refused = 0
        # Threads of its own: loads must not wait behind the decoding of recordings. Two, because one probe may be slow.
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="memory")
        self._line: list[Wanted] = []
        self._changed = asyncio.Event()
        self._probe_failed = False

    @property
    def pressure(self) -> Pressure:
        return self.outlook.pressure if self.outlook is not None else "normal"

    @property
    def waiting(self) -> int:
        """Loads in line."""
        return len(self._line)

    @property
    def total_bytes(self) -> int:
        return self.outlook.reading.total_bytes if self.outlook is not None else physical_memory_bytes()

    @property
    def reserve_bytes(self) -> int:
        """What stays free for other programs."""
        wished = self._settings.memory_reserve_bytes
        usual = min(4 * GIB, self.total_bytes // 16) if wished is None else wished
        return usual if self.pressure == "normal" else WARNING_RESERVE_FACTOR * usual

    def limit(self) -> Limit:
        """What models may hold now."""
        wished = self._settings.memory_limit_bytes
        share = round(self.total_bytes * self._preset.share)
        ceilings = [(wished, "engine.memory_limit_bytes") if wished else (share, "its preset's share")]
        if self.working_set_bytes:
            ceilings.append((self.working_set_bytes, "Metal's recommended working set"))
        available = self.outlook.available_bytes if self.outlook is not None else None
        return ledger.limit(ceilings, self._resident_bytes(), available, self.reserve_bytes)

    async def sample(self) -> None:
        """Read the machine's memory once more. A reading that fails limits nothing; the log says so once."""
        try:
            reading = await asyncio.get_running_loop().run_in_executor(self._threads, self._probe)
            # After the await: a sample that another load took meanwhile is not lost.
            self.outlook = next_outlook(self.outlook, reading, time.monotonic())
        except ProbeFailed as error:
            level = logging.DEBUG if self._probe_failed else logging.WARNING
            logger.log(level, "free memory is not known: %s", error, extra={"action": "probe_failed"})
            self._probe_failed = True

    def close(self) -> None:
        """Nothing is sampled any more."""
        self._threads.shutdown(wait=False)

    def note_change(self) -> None:
        """A model has come, gone or become idle: waiting loads decide again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def refuse_too_large(self, wanted: Wanted) -> None:
        """Raise `ModelTooLarge` for a model that would not fit alone, before anything is fetched or unloaded for it."""
        alone = ledger.decide([], wanted, self.limit(), self.rules, time.monotonic())
        if isinstance(alone, Refuse) and alone.never:
            self.refused += 1
            raise ModelTooLarge(alone.sentence, param="model")

    async def admit(
        self,
        wanted: Wanted,
        *,
        reserve: Callable[[], None],
        report_wait: Callable[[str], None],
        is_wanted: Callable[[], bool],
    ) -> None:
        """Wait until `wanted` fits, then call `reserve`, which puts it into the ledger, and return.

        Models that may go are unloaded for it. It waits for others as long as the settings say, and `EVICTION_SECONDS` longer
        once something was unloaded for it. `report_wait` gets what it waits for, in words. Raises `ModelTooLarge`, or
        `MemoryFull` when the wait was in vain or `is_wanted` has become false.
        """
        self.refuse_too_large(wanted)
        until = time.monotonic() + self._settings.memory_wait_seconds
        latest = until + EVICTION_SECONDS
        self._line.append(wanted)
        try:
            while True:
                await self.sample()
                match self._decide(wanted, may_evict=time.monotonic() < latest):
                    case Admit():
                        reserve()
                        return
                    case Evict(models):
                        for model in models:
                            self._evict(model)
                        until = latest
                        report_wait(f"waiting for {', '.join(models)} to be unloaded")
                    case Refuse(sentence, retry_after):
                        if self.pressure == "warning":
                            sentence = f"the machine is short of memory (warning); {sentence}"
                        if time.monotonic() >= until or not is_wanted():
                            self.refused += 1
                            raise MemoryFull(sentence, param="model", retry_after_seconds=retry_after)
                        report_wait(f"waiting for memory: {sentence}")
                await self._change(until)
        finally:
            self._line.remove(wanted)
            self.note_change()

    async def _change(self, until: float) -> None:
        changed = self._changed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.01, min(SAMPLE_SECONDS, until - time.monotonic()))):
                await changed.wait()

    def _decide(self, wanted: Wanted, *, may_evict: bool) -> ledger.Decision:
        entries, limit, now = self._entries(), self.limit(), time.monotonic()
        if self.pressure == "critical":
            return Refuse(
                f"the machine is critically short of memory, nothing is loaded before that ends: {ledger.holders(entries)}",
                ledger.SHORT_RETRY_SECONDS,
            )
        if self._line[0] is not wanted:
            return ledger.decide_behind(entries, self._line[0], wanted, limit, self.rules, now)
        decision = ledger.decide(entries, wanted, limit, self.rules, now)
        if isinstance(decision, Evict) and not may_evict:
            return Refuse(
                f"models were unloaded for {wanted.model}, and others took their memory", ledger.SHORT_RETRY_SECONDS
            )
        return decision
