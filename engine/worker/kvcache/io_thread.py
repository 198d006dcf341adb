"""The one thread that touches the disk: it finds, reads and writes KV files, and never calls MLX.

It reads before it writes, even in the middle of a file, and writes more slowly while rows decode. A failure is a miss, or a
file that is not kept, and is counted. While the disk cannot be used, every question is answered from memory alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

from engine.kvstore.directory import Contents, Directory
from engine.kvstore.index import Damaged, Entry, IndexBusy, Kind
from engine.kvstore.lock import Owned, Unusable
from engine.worker.kvcache.memory_tier import Snapshot
from engine.worker.kvcache.messages import Answer, Clear, Cleared, Find, Found, Order, Read, Save, Saved, Seen, Touch
from engine.worker.kvcache.planner import NOTHING, plan

logger = logging.getLogger(__name__)

READERS: Final = 2
BUSY_PAUSE_SECONDS: Final = 0.01
"""The pause after each piece of a file while rows decode: it limits writing to 400 MB/s."""
MAX_REPLANS: Final = 16
OWNER_POLL_SECONDS, DISK_POLL_SECONDS = 1.0, 30.0
"""A directory is tried again after this long: one that another process had, and one that could not be used."""


@dataclass
class Traffic:
    """Counted since the start. The thread writes it, anyone may read it."""

    read_bytes: int = 0
    written_bytes: int = 0
    refused: int = 0
    corrupt: int = 0
    contents: Contents = field(default_factory=lambda: Contents(0, 0, 0))


class IoThread:
    """`open_directory` is called on the thread, and so is `post`, which takes the answers. `busy`: rows decode now.

    Up to `ahead_bytes` are read for requests whose rows have not begun, but for the first of them as much as it needs.
    """

    def __init__(
        self, open_directory: Callable[[], Directory], post: Callable[[Answer], None], *, ahead_bytes: int
    ) -> None:
        self._open, self._post = open_directory, post
        self._ahead_bytes, self._ahead = ahead_bytes, 0
        self._finds: deque[Find] = deque()
        self._orders: deque[Order] = deque()
        self._wake = threading.Condition()
        self._stopping = self._clearing = False
        self.busy = False
        self.off: str | None = None
        """Why nothing can be kept on SSD; None while it can."""
        self.relaid = False
        self.traffic = Traffic()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="kv-read")
        self._ready = threading.Event()
        self._directory: Directory | None = None
        self._answered: Find | None = None
        self._try_again_at = 0.0
        self._thread = threading.Thread(target=self._run, name="kv-io", daemon=True)
        self._thread.start()

    def wait_ready(self, seconds: float) -> bool:
        """Wait until the directory is open or known to be unusable. False when that takes longer than `seconds`."""
        return self._ready.wait(seconds)

    def ask(self, find: Find) -> None:
        """Ask for a prompt. Exactly one `Found` answers, before any order that still waits, except `Clear`."""
        with self._wake:
            self._finds.append(find)
            self._wake.notify()

    def order(self, order: Order) -> None:
        """Give an order. Orders are done one after another. `Clear` also goes before questions: none may find what it removes."""
        with self._wake:
            if isinstance(order, Clear):
                self._clearing = True
            self._orders.append(order)
            self._wake.notify()

    def release(self, read_bytes: int) -> None:
        """Bytes that were read ahead for a request are in use, or not needed any more."""
        with self._wake:
            self._ahead -= read_bytes

    def close(self, seconds: float) -> bool:
        """Finish the orders and end. False when that takes longer than `seconds`."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._try_open()
        self._ready.set()
        while True:
            if self.off is not None and time.monotonic() >= self._try_again_at:
                self._try_open()
            job = self._next()
            if job is None and self._stopping:
                break
            if job is not None:
                self._do(job)
        self._close()
        self._readers.shutdown(wait=False)

    def _try_open(self) -> None:
        """Open the directory. What prevents it may pass: an earlier process that is ending, a full or read-only disk."""
        try:
            self._directory = directory = self._open()
            self.traffic.contents = directory.contents
        except Exception as error:  # noqa: BLE001 - without a disk tier the worker serves on
            self._turn_off(error)
            return
        if self.off is not None:
            logger.info("KV goes to SSD again", extra={"action": "kv_disk_on"})
        self.relaid, self.off = directory.relaid, None

    def _close(self) -> None:
        if self._directory is not None:
            self._directory.close()
            self._directory = None

    def _next(self) -> Find | Order | None:
        with self._wake:
            if not (self._finds or self._orders or self._stopping):
                self._wake.wait(None if self.off is None else max(0.05, self._try_again_at - time.monotonic()))
            if self._finds and not self._clearing:
                return self._finds.popleft()
            order = self._orders.popleft() if self._orders else None
            if isinstance(order, Clear):
                self._clearing = any(isinstance(other, Clear) for other in self._orders)
            return order

    def _do(self, job: Find | Order) -> None:
        if self._directory is None:
            self._answer_nothing(job)
            return
        try:
            self._work(self._directory, job)
        except Damaged as error:
            logger.warning("the KV index is damaged and made anew: %s", error, extra={"action": "kv_index_damaged"})
            self._answer_nothing(job)
            self._rebuild(self._directory)
        except Exception as error:  # noqa: BLE001 - as when opening; the answer that is due is given here
            self._turn_off(error)
            self._answer_nothing(job)

    def _rebuild(self, directory: Directory) -> None:
        try:
            directory.rebuild()
            self.traffic.contents = directory.contents
        except Exception as error:  # noqa: BLE001 - as when opening
            self._turn_off(error)

    def _work(self, directory: Directory, job: Find | Order) -> None:
        match job:
            case Find():
                self._find(directory, job)
            case Save() if self._clearing:
                self._post(Saved(job.entry.key, kept=False))
            case Save():
                written = directory.add(job.entry, job.tensors, job.facts, pause=lambda: self._pause(directory))
                if written is None:
                    self.traffic.refused += 1
                else:
                    self.traffic.written_bytes += written
                self.traffic.contents = directory.contents
                self._post(Saved(job.entry.key, kept=written is not None))
            case Touch(keys):
                directory.index.touch(keys, now=time.time())
            case Clear():
                entries = directory.clear()
                self.traffic.contents = directory.contents
                self._post(Cleared(entries))
            case _:
                assert_never(job)

    def _pause(self, directory: Directory) -> None:
        """Between two pieces of a file: questions go first."""
        while True:
            with self._wake:
                find = self._finds.popleft() if self._finds and not self._clearing else None
                if find is None:
                    if self.busy and not self._stopping:
                        self._wake.wait(BUSY_PAUSE_SECONDS)
                    if not self._finds or self._clearing:
                        return
                    continue
            try:
                self._find(directory, find)
            except Exception:
                self._answer_nothing(find)
                raise

    def _find(self, directory: Directory, find: Find) -> None:
        view = _Both(find.snapshot, directory)
        corrupt, known, before = False, set(find.snapshot.keys), self.traffic.read_bytes
        answer = Found(find.id, find.epoch, NOTHING, corrupt=True)
        for _ in range(MAX_REPLANS):
            match = plan(find.prompt, view, has_state=find.has_state)
            missing = [key for key in match.keys if key not in known] if match.tokens > find.floor else []
            if missing and not find.now and not self._has_room(directory, missing):
                answer = Found(find.id, find.epoch, match, corrupt, late=True)
                break
            damaged = self._read(directory, find, missing, known)
            if not damaged:
                answer = Found(find.id, find.epoch, match, corrupt)
                break
            corrupt = True
            self.traffic.corrupt += len(damaged)
            directory.remove(damaged)
        # Looked up before the answer, because users are told what was evicted. Noted after it: nobody waits for that write.
        if find.sight and (seen := directory.index.sighted(find.sight)):
            self._post(Seen(find.id, frozenset(seen)))
        read_bytes = self.traffic.read_bytes - before
        with self._wake:
            self._ahead += read_bytes
        self._post(replace(answer, read_bytes=read_bytes))
        self._answered = find
        if find.sight:
            directory.index.sight(find.sight, now=time.time())

    def _has_room(self, directory: Directory, keys: Sequence[bytes]) -> bool:
        size = sum(entry.size for key in keys if (entry := directory.index.get(key)) is not None)
        return not self._ahead or self._ahead + size <= self._ahead_bytes

    def _read(self, directory: Directory, find: Find, keys: Sequence[bytes], known: set[bytes]) -> list[bytes]:
        """Read files, a few at once, and post each as soon as it is here. Returns the keys of those that could not be read."""
        damaged = []
        directory.will_need(keys)
        for key, content in zip(keys, self._readers.map(directory.read, keys), strict=True):
            entry = directory.index.get(key)
            if content is None or entry is None:
                damaged.append(key)
                continue
            tensors, facts = content
            self.traffic.read_bytes += sum(tensor.data.nbytes for tensor in tensors.values())
            known.add(key)
            self._post(Read(find.id, find.epoch, entry, tensors, facts))
        return damaged

    def _answer_nothing(self, job: Find | Order) -> None:
        match job:
            case Find():
                if job is not self._answered:
                    self._post(Found(job.id, job.epoch, plan(job.prompt, job.snapshot, has_state=job.has_state)))
            case Save():
                self.traffic.refused += 1
                self._post(Saved(job.entry.key, kept=False))
            case Clear():
                self._post(Cleared(0))
            case Touch():
                pass
            case _:
                assert_never(job)

    def _turn_off(self, error: Exception) -> None:
        owned, before = isinstance(error, Owned), self.off
        self.off = str(error) or type(error).__name__
        self._try_again_at = time.monotonic() + (OWNER_POLL_SECONDS if owned else DISK_POLL_SECONDS)
        self._close()
        if self.off != before:
            known = isinstance(error, Unusable | IndexBusy | Owned)
            logger.warning(
                "KV is kept in memory only: %s",
                self.off,
                extra={"action": "kv_disk_off"},
                exc_info=None if known else error,
            )


class _Both:
    """A `View` of RAM and SSD together."""

    def __init__(self, memory: Snapshot, directory: Directory) -> None:
        self._memory, self._directory = memory, directory

    def known(self, keys: Sequence[bytes]) -> set[bytes]:
        found = self._memory.known(keys)
        return found | self._directory.index.known([key for key in keys if key not in found])

    def children(self, parents: Sequence[bytes], kind: Kind) -> list[Entry]:
        found = {entry.key: entry for entry in self._directory.index.children(parents, kind)}
        return [*({**found, **{entry.key: entry for entry in self._memory.children(parents, kind)}}).values()]
