"""How much of the disk each worker's KV may take: the gateway shares the home's caps out among the loaded models.

A lease never shrinks while its worker lives, so the caps hold even if a worker does not answer. A worker is granted half of
what is left, or what its directory holds already. A lease is written into its directory, where the gateway of another
engine on the same home sees it. The gateway trims directories without a worker."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import msgspec

from engine.kvstore.directory import Contents, Directory, Limits
from engine.kvstore.index import Damaged, IndexBusy
from engine.kvstore.lock import Owned, Unusable
from engine.kvstore.notes import read_about, write_lease
from engine.kvstore.survey import Report, directories, report

logger = logging.getLogger(__name__)

FOLDER: Final = "kv"
"""Under the home."""
LEAST_SHARE: Final = 4
"""Directories without a worker are trimmed until a new worker can have a fourth of the cap, as far as they hold that much."""
TRIMMED_AT_ONCE: Final = 16

Size = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0.0)]


class Lease(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What one worker may do with KV, sent to it as a part of its `WorkerConfig`.

    It may keep `memory_bytes` in memory (0: it keeps nothing anywhere) and `disk_bytes` in its `directory`, a path as
    the file system writes it (`os.fsencode`). It may write
    `write_bytes` a day, and leaves `free_bytes` free on that disk. Entries unused for `age_seconds` go. At its end it has
    `flush_seconds` to write what is only in memory. `fingerprint` says which weights these are. Without a directory KV stays in
    memory, and `off` says why.
    """

    memory_bytes: Size
    directory: bytes | None = None
    disk_bytes: Size = 0
    write_bytes: Size = 0
    free_bytes: Size = 0
    age_seconds: Seconds = 0.0
    flush_seconds: Seconds = 0.0
    fingerprint: str = ""
    off: str = "memory only"


@dataclass(frozen=True)
class Caps:
    """What all models of a home may take together. Entries unused for `age_seconds` go."""

    disk_bytes: int
    write_bytes_a_day: int
    free_bytes: int
    age_seconds: float


class Leases:
    """Owned by the launcher. Methods read and trim directories, which may take a moment: call them off the event loop. A
    directory that cannot be read is made anew or left out; no method raises for it."""

    def __init__(self, root: Path, caps: Caps, *, memory_bytes: int, flush_seconds: float) -> None:
        self.root, self.caps = root, caps
        self._memory_bytes, self._flush_seconds = memory_bytes, flush_seconds
        self._granted: dict[Path, list[tuple[int, int]]] = {}
        self._turn = threading.RLock()

    def grant(self, fingerprint: str) -> Lease:
        """A lease for a worker with these weights that is about to start."""
        if not self.caps.disk_bytes or not self._memory_bytes:
            return self.memory_only(fingerprint, "engine.kv_disk_bytes is 0")
        if cause := _make_private(self.root):
            return self.memory_only(fingerprint, cause)
        path = self.root / fingerprint[:32]
        with self._turn:
            disk, _ = self._left(path)
            self.trim(max(0, self.caps.disk_bytes // LEAST_SHARE - disk), spare=path)
            disk, writes = self._left(path)
            own = next((found for found in self.reports() if found.path == path), None)
            share = max(disk // 2, min(disk, own.contents.bytes if own is not None else 0))
            try:
                # Another worker with the same weights may own the directory: its lease counts until it ends.
                write_lease(path, *_most([(share, writes // 2), own.lease if own is not None else (0, 0)]))
            except OSError as error:
                logger.warning("KV is kept in memory only: %s", error, extra={"action": "kv_disk_off"})
                return self.memory_only(fingerprint, str(error))
            self._granted.setdefault(path, []).append((share, writes // 2))
        caps = self.caps
        return Lease(
            self._memory_bytes,
            directory=os.fsencode(path),
            disk_bytes=share,
            write_bytes=writes // 2,
            free_bytes=caps.free_bytes,
            age_seconds=caps.age_seconds,
            flush_seconds=self._flush_seconds,
            fingerprint=fingerprint,
        )

    def memory_only(self, fingerprint: str, cause: str) -> Lease:
        """A lease for a worker whose KV cannot go to SSD, because of `cause`."""
        return Lease(self._memory_bytes, flush_seconds=self._flush_seconds, fingerprint=fingerprint, off=cause)

    def give_back(self, lease: Lease) -> None:
        """The lease's worker has ended."""
        if lease.directory is not None:
            with self._turn:
                path = Path(os.fsdecode(lease.directory))
                granted = self._granted.get(path, [])
                if (size := (lease.disk_bytes, lease.write_bytes)) in granted:
                    granted.remove(size)
                if not granted:
                    self._granted.pop(path, None)

    def trim(self, size: int = 0, *, spare: Path | None = None) -> int:
        """Free `size` bytes in directories without a worker, the longest unused entries first. Entries that exceed the cap or are
        too old go in any case. Returns the bytes freed."""
        with self._turn, contextlib.ExitStack() as stack:
            mine = [found for path in directories(self.root) if (found := self._taken(path, spare)) is not None]
            for found in mine:
                stack.callback(found.close)
            before = sum(_bytes(found) for found in mine)
            for found in mine:
                _carefully(found.sweep, found)
            room = self.caps.disk_bytes - self._others_disk(spare, besides=[found.path for found in mine])
            target = max(0, min(before, room) - size)
            while (kept := sum(_bytes(found) for found in mine)) > target:
                oldest = [(used, i) for i, found in enumerate(mine) if (used := _oldest_use(found)) is not None]
                if not oldest:
                    break
                found = mine[min(oldest)[1]]
                at_most = max(0, _bytes(found) - (kept - target))
                if not _carefully(partial(found.evict, at_most, at_most=TRIMMED_AT_ONCE), found):
                    mine.remove(found)
            return before - sum(_bytes(found) for found in mine)

    def reports(self) -> list[Report]:
        """Every directory of the home that can be read, owned or not."""
        found = []
        for path in directories(self.root):
            try:
                found.append(report(path))
            except (Damaged, IndexBusy, OSError) as error:
                logger.info("a KV directory cannot be read: %s", error, extra={"action": "kv_unreadable"})
        return found

    def _left(self, path: Path) -> tuple[int, int]:
        """Bytes on disk, and bytes of today's writes, that no other directory holds or may take."""
        others = [found for found in self.reports() if found.path != path]
        writes = 0
        for found in others:
            _, may_write = _most(self._granted.get(found.path, [found.lease]))
            writes += max(may_write, found.contents.written_today)
        return (
            max(0, self.caps.disk_bytes - self._others_disk(path, besides=[])),
            max(0, self.caps.write_bytes_a_day - writes),
        )

    def _others_disk(self, path: Path | None, *, besides: list[Path]) -> int:
        """Bytes that directories hold or may take, except `path` and `besides`."""
        found = {item.path: max(item.lease[0], item.contents.bytes) for item in self.reports()}
        for name, granted in self._granted.items():
            found[name] = max(_most(granted)[0], found.get(name, 0))
        return sum(size for name, size in found.items() if name != path and name not in besides)

    def _taken(self, path: Path, spare: Path | None) -> Directory | None:
        """A directory without a worker, which we own from now on; None when it has a worker. Opening one that cannot be
        read makes it anew."""
        if path == spare or path in self._granted:
            return None
        limits = Limits(self.caps.disk_bytes, 0, max_age_seconds=self.caps.age_seconds)
        try:
            return Directory(path, limits, read_about(path) or {})
        except (Owned, Unusable, Damaged, IndexBusy, OSError):
            return None


def _most(granted: list[tuple[int, int]]) -> tuple[int, int]:
    """Bytes on disk, and bytes of a day's writes, that the owner of a directory may take: one of several leases is the
    owner's."""
    return max(disk for disk, _ in granted), max(writes for _, writes in granted)


def _carefully(work: Callable[[], object], directory: Directory) -> bool:
    """Do `work` on a directory. Returns whether it was done. A directory that turns out to be damaged is made anew, empty."""
    try:
        work()
    except Damaged:
        with contextlib.suppress(Unusable):
            directory.rebuild()
        return False
    except (IndexBusy, Unusable, OSError) as error:
        logger.info("a KV directory cannot be trimmed: %s", error, extra={"action": "kv_unreadable"})
        return False
    return True


def _bytes(directory: Directory) -> int:
    try:
        contents: Contents = directory.contents
    except (Damaged, IndexBusy):
        return 0
    return contents.bytes


def _oldest_use(directory: Directory) -> float | None:
    try:
        return next((entry.used for entry in directory.index.oldest(1)), None)
    except (Damaged, IndexBusy):
        return None


def _make_private(root: Path) -> str:
    """Make the folder readable for this user alone, because prompts can be read out of KV, and keep it out of search and backups.
    Returns why it cannot be used; "" when it can."""
    try:
        new = not root.exists()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
        (root / ".metadata_never_index").touch()
        if new and sys.platform == "darwin":
            subprocess.run(["/usr/bin/tmutil", "addexclusion", str(root)], check=False, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("KV cannot be kept under %s: %s", root, error, extra={"action": "kv_disk_off"})
        return f"{root} cannot be used: {error}"
    return ""
