"""What of the memory tier goes to SSD, and when. On the model's thread; the disk's thread does the writing.

The life of an entry that a row computed:

               computed
                  |
                  v          shrink: dropped, and lost
                dirty ------------------------------------>  x
                  |
                  | wanted again, worth its bytes, or wanted by a swapped-out row
                  v
              admitted ----- is a tip -----> tips            the end of a sequence: the next turn outgrows it
                  |                           |    \\_______>  x   outgrown: dropped, and not needed
                  | is no tip                 | untouched for TIP_SECONDS
                  v                           v
                 due <------------------------+
                  |                           shrink drops an admitted entry in any of these states:
                  | tend, SAVES_AT_ONCE       it is handed over at once, while no more than MAX_SPILL_BYTES wait
                  v
               saving ------ Saved(kept=False) -----> dirty, and the user is told "quota"
                  |
                  | Saved(kept=True)
                  v
                kept: on SSD, no longer dirty; leaves memory when unused for MEMORY_SECONDS

At the end of the process `flush` hands over everything that is still dirty, admitted or not, the newest first. A file that the
process does not live to finish is a miss: see `engine.kvstore.directory` for the order of its writes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from engine.kvstore.blobs import Tensor
from engine.worker.kvcache.io_thread import IoThread
from engine.worker.kvcache.memory_tier import Content, Kept, MemoryTier
from engine.worker.kvcache.messages import Answer, Save, Saved

MEMORY_SECONDS: Final = 600.0
"""An entry that is on SSD and was not used for this long leaves memory."""
TIP_SECONDS: Final = 20.0
"""An untouched end of a sequence goes to SSD after this long: the turns of an agent come faster."""
SAVES_AT_ONCE: Final = 2
MAX_SPILL_BYTES: Final = 512 << 20
"""What may wait for the disk after it had to leave the memory tier."""
MAX_REFUSED: Final = 10_000
"""Refused entries that are remembered, to tell users why they are missing."""


class Writeback:
    """Owned by the cache. `io` None: nothing is ever written. `as_tensors` makes an entry's content bytes that the disk's
    thread can read without MLX."""

    def __init__(
        self, memory: MemoryTier, io: IoThread | None, as_tensors: Callable[[Content], Mapping[str, Tensor]]
    ) -> None:
        self._memory, self._io, self._as_tensors = memory, io, as_tensors
        self._due: deque[bytes] = deque()
        self._tips: dict[bytes, None] = {}
        self._saving: dict[bytes, int] = {}
        self._refused: dict[bytes, None] = {}
        self.spilled_away = 0
        """Admitted entries that left memory unwritten: too many waited for the disk, or there is none."""

    @property
    def is_on(self) -> bool:
        """Whether files can be written now."""
        return self._io is not None and self._io.off is None

    @property
    def can_spill(self) -> bool:
        """Whether an entry that leaves memory can still be written."""
        return self.is_on and sum(self._saving.values()) < MAX_SPILL_BYTES

    @property
    def refused(self) -> Mapping[bytes, None]:
        """Entries that a limit or the disk kept off SSD."""
        return self._refused

    def admit(self, key: bytes) -> None:
        """The entry was wanted again: it has earned its place on SSD."""
        kept = self._memory.get(key)
        if kept is not None and not kept.admitted:
            kept.admitted = True
            self.schedule(kept)

    def schedule(self, kept: Kept) -> None:
        """Write an admitted entry when its time comes."""
        if kept.dirty and self.is_on:
            if kept.entry.tip:
                self._tips[kept.entry.key] = None
            else:
                self._due.append(kept.entry.key)

    def outgrown(self, key: bytes) -> None:
        """A longer entry has taken the place of this one: drop it."""
        self._memory.drop(key)
        self._tips.pop(key, None)

    def add(self, kept: Kept) -> None:
        """Take an entry into memory. What has to leave for it is written first, within bounds."""
        self._spill(self._memory.add(kept))

    def shrink(self, limit_bytes: int) -> None:
        """Drop the longest unused entries from memory until `limit_bytes` are left. They are written first, within bounds."""
        self._spill(self._memory.shrink(limit_bytes))

    def tend(self, *, busy: bool, now: float) -> float | None:
        """Hand over what is due. Returns seconds until the next call, None: not before something happens. `busy`: rows decode,
        so the disk goes slower. `now` is a time of `time.monotonic`."""
        if self._io is None or self._io.off is not None:
            return None
        self._io.busy = busy
        if not busy:
            self._memory.forget(MEMORY_SECONDS)
        self._ripen(now)
        while self._due and len(self._saving) < SAVES_AT_ONCE:
            self._save(self._due.popleft())
        if not self._tips:
            return MEMORY_SECONDS / 2 if len(self._memory) else None
        oldest = min(kept.used for key in self._tips if (kept := self._memory.get(key)))
        return max(0.05, oldest + TIP_SECONDS - now)

    def saved(self, answer: Saved) -> None:
        """A file is written, or was refused."""
        self._saving.pop(answer.key, None)
        kept = self._memory.get(answer.key)
        if answer.kept:
            self._refused.pop(answer.key, None)
            if kept is not None:
                kept.dirty = False
            return
        self._refused[answer.key] = None
        while len(self._refused) > MAX_REFUSED:
            self._refused.pop(next(iter(self._refused)))

    def flush(self, seconds: float, answers: Callable[[], Answer | None]) -> bool:
        """Write everything that is not on SSD yet, the newest first, within `seconds`, and end the disk's thread. False when
        time ran out. `answers` gives what that thread has posted so far, one by one, then None."""
        if self._io is None or self._io.off is not None:
            return True
        until = time.monotonic() + seconds
        self._io.busy = False
        waiting = deque(kept.entry.key for kept in self._memory.newest_first() if kept.dirty)
        while (waiting or self._saving) and time.monotonic() < until:
            while waiting and len(self._saving) < SAVES_AT_ONCE:
                self._save(waiting.popleft(), forced=True)
            while (answer := answers()) is not None:
                if isinstance(answer, Saved):
                    self.saved(answer)
            if self._saving:
                time.sleep(0.002)
        return self._io.close(max(0.1, until - time.monotonic())) and not waiting

    def clear(self) -> None:
        """Forget what waits to be written. What was handed over stays with the disk's thread."""
        self._due.clear()
        self._tips.clear()

    def forget_refusals(self) -> None:
        """What was refused for a reason that is over can be written now."""
        self._refused.clear()

    def _spill(self, dropped: Iterable[Kept]) -> None:
        """Write now what left memory before it was written, if there is room to wait for the disk."""
        for kept in dropped:
            if kept.dirty and kept.admitted and kept.entry.key not in self._saving:
                if self.can_spill:
                    self._hand_over(kept)
                else:
                    self.spilled_away += 1

    def _ripen(self, now: float) -> None:
        """Tips that were untouched for long enough become due."""
        ripe = [key for key in self._tips if (kept := self._memory.get(key)) is None or now - kept.used >= TIP_SECONDS]
        for key in ripe:
            del self._tips[key]
            if (kept := self._memory.get(key)) is not None and kept.dirty and kept.admitted:
                self._due.append(key)

    def _save(self, key: bytes, *, forced: bool = False) -> None:
        kept = self._memory.get(key)
        if kept is not None and kept.dirty and (kept.admitted or forced) and key not in self._saving:
            self._hand_over(kept)

    def _hand_over(self, kept: Kept) -> None:
        assert self._io is not None
        self._saving[kept.entry.key] = kept.bytes
        self._io.order(Save(kept.entry, self._as_tensors(kept.content), kept.facts))
