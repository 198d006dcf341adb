"""One directory of KV, as its owner uses it: files, their index, limits. The owner is the process that holds the lock.

    DIRECTORY/lock  about.json  lease.json  written.json  index.sqlite  files/ab/ab…64 hex digits….safetensors

The order of a crash: a file is written before its row, and a row is removed before its file. So a crash can leave a file
without a row, which is swept by its name before the next write, but never a row that promises a file that is not there.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from engine.kvstore import blobs
from engine.kvstore.index import Damaged, Entry, Index, IndexBusy, row_bytes
from engine.kvstore.lock import Lock, Unusable
from engine.kvstore.notes import WrittenToday, forget_about, read_about, write_about

logger = logging.getLogger(__name__)

LAYOUT: Final = 2
"""The layout of files and of their content. Another number makes everything that was written before a miss."""
MAX_AGE_SECONDS: Final = 30 * 86_400.0
EVICTED_AT_ONCE: Final = 64
SUFFIX: Final = ".safetensors"
_KEY: Final = "key"


@dataclass(frozen=True)
class Limits:
    """What a directory may take: bytes at any time, and bytes written a day. `free_bytes` must stay free on its disk."""

    disk_bytes: int
    write_bytes_a_day: int
    free_bytes: int = 2 << 30
    max_age_seconds: float = MAX_AGE_SECONDS


@dataclass(frozen=True)
class Contents:
    """What lies in a directory: bytes of files and of their rows, the number of entries, and bytes written today."""

    bytes: int
    entries: int
    written_today: int


class Directory:
    """Owned by one thread of one process. Raises `Owned` when another process has it, `Unusable` when nothing can be kept now.

    A damaged index is made anew at the start. Later, methods raise `Damaged`, and the owner calls `rebuild`; or they raise
    `IndexBusy`, and the owner tries again later. `relaid`: files of another layout lay here and were erased.
    """

    def __init__(self, path: Path, limits: Limits, about: Mapping[str, Any]) -> None:
        self.path, self.limits = path, limits
        self.relaid = False
        self._about = {**about, "layout": LAYOUT}
        self._lock = Lock(path)
        try:
            self._index = self._open()
        except BaseException:
            self._lock.release()
            raise
        self._swept = False
        self._written = WrittenToday(path)

    def close(self) -> None:
        self._index.close()
        self._lock.release()

    @property
    def index(self) -> Index:
        return self._index

    @property
    def contents(self) -> Contents:
        size, entries = self._index.size
        return Contents(size, entries, self._written.bytes)

    def add(
        self,
        entry: Entry,
        tensors: blobs.Tensors,
        facts: Mapping[str, str],
        *,
        pause: Callable[[], None] | None = None,
    ) -> int | None:
        """Keep a file, and evict the longest unused ones to make room. Returns the bytes written, 0 when it is there already.
        None: a limit forbids it or the disk is full, and nothing is kept.

        A new block replaces shorter ones after the same parent that it begins with: their tokens are found in the new one.
        """
        self.sweep(pause)
        if self._index.known([entry.key]):
            return 0
        facts = {**facts, _KEY: entry.key.hex()}
        size, row = blobs.size(tensors, facts), row_bytes(entry)
        if size + row > self.limits.disk_bytes or self._written.bytes + size > self.limits.write_bytes_a_day:
            return None
        path = self.file(entry.key)
        try:
            short = self.limits.free_bytes + size - shutil.disk_usage(self.path).free
            if short > 0:
                # Others fill the disk: entries here make room, and nothing new is added.
                self.evict(max(0, self._index.size[0] - short))
                return None
            self.evict(self.limits.disk_bytes - size - row)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Counted before it is written: what a crash or a full disk cuts short was written too.
            self._written.add(size)
            written = blobs.write(path, tensors, facts, pause=pause)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return None
            raise Unusable(f"{self.path} cannot be written: {error}") from error
        self._index.add(replace(entry, size=written + row), now=time.time())
        if entry.kind == "block":
            self.remove([other.key for other in self._index.children([entry.parent], "block") if entry.extends(other)])
        return written

    def read(self, key: bytes) -> tuple[dict[str, blobs.Tensor], dict[str, str]] | None:
        """What was kept; None when the file is damaged, missing or another entry's. Any thread may call it: it uses no index."""
        try:
            tensors, facts = blobs.read(self.file(key))
        except blobs.Corrupt as error:
            logger.warning("a KV file is damaged: %s", error, extra={"action": "kv_corrupt"})
            return None
        return (tensors, facts) if facts.get(_KEY) == key.hex() else None

    def will_need(self, keys: Sequence[bytes]) -> None:
        """Tell the kernel that these files are about to be read, so that it starts with all of them."""
        for key in keys:
            blobs.will_need(self.file(key))

    def remove(self, keys: list[bytes]) -> None:
        """Remove entries: rows first, for a file without a row is swept, but a row without a file would be a false promise."""
        self._index.remove(keys)
        for key in keys:
            with contextlib.suppress(OSError):
                self.file(key).unlink(missing_ok=True)

    def evict(self, limit: int, *, at_most: int | None = None) -> int:
        """Remove the longest unused entries until `limit` bytes are left or `at_most` entries are removed, and those over age.
        Returns their number."""
        removed = 0
        while True:
            oldest = self._index.oldest(
                min(EVICTED_AT_ONCE, at_most - removed) if at_most is not None else EVICTED_AT_ONCE
            )
            total, _ = self._index.size
            too_old = time.time() - self.limits.max_age_seconds
            going = []
            for entry in oldest:
                if total <= limit and entry.used >= too_old:
                    break
                going.append(entry.key)
                total -= entry.size
            if not going:
                return removed
            self.remove(going)
            removed += len(going)
            if len(going) < len(oldest) or removed == at_most:
                return removed

    def clear(self) -> int:
        """Remove every entry. Returns their number."""
        _, entries = self._index.size
        self._index.close()
        self._erase()
        self._index = self._create()
        return entries

    def sweep(self, pause: Callable[[], None] | None = None) -> int:
        """Remove files without a row and rows without a file, once, by their names alone. Returns their number. `pause` is called
        now and then, so that more urgent work can go first."""
        if self._swept:
            return 0
        self._swept = True
        _unlink_link(self.path / "files")
        removed = 0
        for number in range(256):
            folder = self.path / "files" / f"{number:02x}"
            _unlink_link(folder)
            keys = self._index.between(bytes([number]) + b"\0" * 31, bytes([number]) + b"\xff" * 31)
            names = {key.hex() + SUFFIX for key in keys}
            there = set(_names(folder))
            for name in there - names:
                with contextlib.suppress(OSError):
                    (folder / name).unlink()
                    removed += 1
            if missing := [key for key in keys if key.hex() + SUFFIX not in there]:
                self._index.remove(missing)
                removed += len(missing)
            if pause is not None:
                pause()
        self.evict(self.limits.disk_bytes)
        return removed

    def file(self, key: bytes) -> Path:
        name = key.hex()
        return self.path / "files" / name[:2] / f"{name}{SUFFIX}"

    def _open(self) -> Index:
        about = read_about(self.path)
        if about is not None and about.get("layout") != LAYOUT:
            self.relaid = True
            self._erase()
            return self._create()
        try:
            index = Index(self.path / "index.sqlite")
        except Damaged as error:
            logger.warning("the KV index is damaged and made anew: %s", error, extra={"action": "kv_index_damaged"})
            self._erase()
            return self._create()
        except IndexBusy as error:
            raise Unusable(f"{self.path} cannot be used: {error}") from error
        if about is None:  # new, or lost; entries of another layout cannot be found: every key has the layout in it
            index.close()
            return self._create()
        return index

    def rebuild(self) -> None:
        """Start again with an empty directory, after `Damaged`. Raises `Unusable`."""
        self._index.close()
        self._erase()
        self._index = self._create()

    def _create(self) -> Index:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_about(self.path, self._about)
            return Index(self.path / "index.sqlite")
        except (OSError, Damaged, IndexBusy) as error:
            raise Unusable(f"{self.path} cannot be written: {error}") from error

    def _erase(self) -> None:
        """Erase everything but the lock and the count of today's writes. What a crash leaves of it, rows or files, is swept."""
        self._swept = False
        _unlink_link(self.path / "files")
        shutil.rmtree(self.path / "files", ignore_errors=True)
        with contextlib.suppress(OSError):
            forget_about(self.path)
        for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm"):
            with contextlib.suppress(OSError):
                (self.path / name).unlink(missing_ok=True)


def _unlink_link(folder: Path) -> None:
    """A link in the place of a folder of ours goes, and what it leads to stays: nothing there is ours to delete."""
    with contextlib.suppress(OSError):
        if folder.is_symlink():
            folder.unlink()


def _names(folder: Path) -> list[str]:
    try:
        return [found.name for found in os.scandir(folder)]
    except OSError:
        return []
