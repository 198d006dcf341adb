"""One directory of KV: files, index, lock. Whoever holds the lock owns it; others may only look.

    DIRECTORY/lock  about.json  lease.json  written.json  index.sqlite  files/ab/ab…64 hex digits….safetensors

A file is there before its row and its row goes before the file, so that whatever a crash leaves behind is a file without a
row (swept at the next start, by name alone) and never a row that promises what is not there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from engine.kvstore import blobs
from engine.kvstore.index import Damaged, Entry, Index, Unavailable, row_bytes

logger = logging.getLogger(__name__)

LAYOUT: Final = 2
"""Of the files and of what is in them. Another number makes everything written before a miss."""
MAX_AGE_SECONDS: Final = 30 * 86_400.0
EVICTED_AT_ONCE: Final = 64
_SUFFIX: Final = ".safetensors"
_KEY: Final = "key"


class Owned(Exception):
    """Another process holds the lock."""


class Unusable(Exception):
    """Nothing can be kept here: the disk cannot be read or written. The message says why."""


@dataclass(frozen=True)
class Limits:
    """What a directory may take: bytes at any time, bytes written a day, and bytes that must stay free on its disk."""

    disk_bytes: int
    write_bytes_a_day: int
    free_bytes: int = 2 << 30
    max_age_seconds: float = MAX_AGE_SECONDS


@dataclass(frozen=True)
class Contents:
    """Bytes of files and of their rows, entries, and bytes written today."""

    bytes: int
    entries: int
    written_today: int


class Directory:
    """Owned by one thread of one process. Raises `Owned` when another has it, `Unusable` when nothing can be kept now.

    A damaged index is made anew at the start; later, methods raise `Damaged`, and `rebuild` is for the owner to call, or
    `Unavailable`. `relaid` says that another layout lay there.
    """

    def __init__(self, path: Path, limits: Limits, about: Mapping[str, Any]) -> None:
        self.path, self.limits = path, limits
        self.relaid = False
        self._about = {**about, "layout": LAYOUT}
        self._lock = _Lock(path)
        try:
            self._index = self._open()
        except BaseException:
            self._lock.release()
            raise
        self._swept = False
        self._written = _read_written(path)

    def close(self) -> None:
        self._index.close()
        self._lock.release()

    @property
    def index(self) -> Index:
        return self._index

    @property
    def contents(self) -> Contents:
        size, entries = self._index.size
        return Contents(size, entries, self._written_today())

    def add(
        self,
        entry: Entry,
        tensors: blobs.Tensors,
        facts: Mapping[str, str],
        *,
        pause: Callable[[], None] | None = None,
    ) -> int | None:
        """Keep a file, evicting older ones for it. Returns the bytes written: 0 when it is there already; None, and nothing is
        kept, when a limit forbids it or the disk is full.

        A shorter block after the same parent that the new one begins with goes: whatever needs it finds it in the new one.
        """
        self.sweep(pause)
        if self._index.known([entry.key]):
            return 0
        facts = {**facts, _KEY: entry.key.hex()}
        size, row = blobs.size(tensors, facts), row_bytes(entry)
        if size + row > self.limits.disk_bytes or self._written_today() + size > self.limits.write_bytes_a_day:
            return None
        path = self.file(entry.key)
        try:
            short = self.limits.free_bytes + size - shutil.disk_usage(self.path).free
            if short > 0:
                # Others fill the disk: what is here gives way, and nothing new comes.
                self.evict(max(0, self._index.size[0] - short))
                return None
            self.evict(self.limits.disk_bytes - size - row)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Counted before: what a crash or a full disk cuts short has been written too.
            self._note_written(size)
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
        """What was kept; None when the file is damaged, missing or another's. Touches no index: any thread may call it."""
        try:
            tensors, facts = blobs.read(self.file(key))
        except blobs.Corrupt as error:
            logger.warning("a KV file is damaged: %s", error, extra={"action": "kv_corrupt"})
            return None
        return (tensors, facts) if facts.get(_KEY) == key.hex() else None

    def will_need(self, keys: Sequence[bytes]) -> None:
        """These are about to be read: the disk may begin with all of them."""
        for key in keys:
            blobs.will_need(self.file(key))

    def remove(self, keys: list[bytes]) -> None:
        """Rows first: a file without a row is swept, a row without a file would be a false promise."""
        self._index.remove(keys)
        for key in keys:
            with contextlib.suppress(OSError):
                self.file(key).unlink(missing_ok=True)

    def evict(self, limit: int, *, at_most: int | None = None) -> int:
        """Remove the longest unused entries until `limit` bytes are left or `at_most` have gone, and those over age. Returns
        their number."""
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
        """Remove files without a row and rows without a file, once, by their names. Returns their number. `pause` is called
        now and then, to let more urgent work go first."""
        if self._swept:
            return 0
        self._swept = True
        removed = 0
        for number in range(256):
            folder = self.path / "files" / f"{number:02x}"
            keys = self._index.between(bytes([number]) + b"\0" * 31, bytes([number]) + b"\xff" * 31)
            names = {key.hex() + _SUFFIX for key in keys}
            there = set(_names(folder))
            for name in there - names:
                with contextlib.suppress(OSError):
                    (folder / name).unlink()
                    removed += 1
            if missing := [key for key in keys if key.hex() + _SUFFIX not in there]:
                self._index.remove(missing)
                removed += len(missing)
            if pause is not None:
                pause()
        self.evict(self.limits.disk_bytes)
        return removed

    def file(self, key: bytes) -> Path:
        name = key.hex()
        return self.path / "files" / name[:2] / f"{name}{_SUFFIX}"

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
        except Unavailable as error:
            raise Unusable(f"{self.path} cannot be used: {error}") from error
        if about is None:  # new, or lost: entries have the layout in their keys
            index.close()
            return self._create()
        return index

    def _written_today(self) -> int:
        """Bytes written to files on this day of local time, whatever became of them."""
        return self._written.get(_day(), 0)

    def _note_written(self, size: int) -> None:
        self._written = {_day(): self._written_today() + size}
        half = self.path / "written.json.half"
        half.write_text(json.dumps(self._written), encoding="utf-8")
        half.replace(self.path / "written.json")

    def rebuild(self) -> None:
        """Begin anew, empty, after `Damaged`. Raises `Unusable`."""
        self._index.close()
        self._erase()
        self._index = self._create()

    def _create(self) -> Index:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            half = self.path / "about.json.half"
            half.write_text(json.dumps(self._about, indent=1) + "\n", encoding="utf-8")
            half.replace(self.path / "about.json")
            return Index(self.path / "index.sqlite")
        except (OSError, Damaged, Unavailable) as error:
            raise Unusable(f"{self.path} cannot be written: {error}") from error

    def _erase(self) -> None:
        """All but the lock and what was written today. Files first: without them an index is swept, without it they are."""
        self._swept = False
        shutil.rmtree(self.path / "files", ignore_errors=True)
        for name in ("about.json", "index.sqlite", "index.sqlite-wal", "index.sqlite-shm"):
            with contextlib.suppress(OSError):
                (self.path / name).unlink(missing_ok=True)


class _Lock:
    """`flock` on a file: it goes with its process, however that ends."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unusable(f"{folder} cannot be used: {error}") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._handle)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise Owned(f"another process uses {folder}") from error
            raise Unusable(f"{folder} cannot be locked: {error}") from error

    def release(self) -> None:
        os.close(self._handle)


@dataclass(frozen=True)
class Report:
    """A directory as anyone may see it. `owned`: a process uses it now, with `lease` as its bytes on disk and a day's writes."""

    path: Path
    model: str
    owned: bool
    contents: Contents
    lease: tuple[int, int] = (0, 0)


def directories(root: Path) -> list[Path]:
    """The KV directories of a home, also those without an index."""
    return sorted(path.parent for path in root.glob("*/lock"))


def report(path: Path) -> Report:
    """Look at a directory without owning it or writing to it. Raises `Damaged` or `Unavailable`."""
    about, written = read_about(path) or {}, _read_written(path).get(_day(), 0)
    index = Index(path / "index.sqlite", read_only=True)
    try:
        size, entries = index.size
    finally:
        index.close()
    owned = _is_owned(path)
    lease = _read_json(path / "lease.json")
    granted = (int(lease.get("disk_bytes", 0)), int(lease.get("write_bytes", 0))) if owned and lease else (0, 0)
    return Report(path, str(about.get("model", "?")), owned, Contents(size, entries, written), granted)


def note_lease(path: Path, disk_bytes: int, write_bytes: int) -> None:
    """Write down what the owner-to-be of a directory may take, for other gateways of the same home."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    half = path / "lease.json.half"
    try:
        half.write_text(json.dumps({"disk_bytes": disk_bytes, "write_bytes": write_bytes}), encoding="utf-8")
        half.replace(path / "lease.json")
    except OSError:
        half.unlink(missing_ok=True)
        raise


def clear(root: Path, model: str | None = None) -> int:
    """Remove all entries of the directories under `root` that no process uses, of one `model` or of all. Returns their number."""
    removed = 0
    for path in directories(root):
        about = read_about(path) or {}
        if model is not None and about.get("model") != model:
            continue
        try:
            with contextlib.closing(Directory(path, Limits(0, 0), about)) as directory:
                removed += directory.clear()
        except (Owned, Unusable, Damaged, Unavailable) as error:
            logger.info("KV is left alone: %s", error, extra={"action": "kv_not_cleared"})
    return removed


def damaged_files(path: Path) -> Iterator[tuple[Path, str]]:
    """Read every file of a directory and yield those that are not what was written, with the cause. Needs no lock: a file
    that goes meanwhile is not counted."""
    for file in sorted((path / "files").glob(f"*/*{_SUFFIX}")):
        try:
            blobs.read(file)
        except blobs.Corrupt as error:
            if file.exists():
                yield file, str(error)


def _is_owned(path: Path) -> bool:
    try:
        _Lock(path).release()
    except Owned:
        return True
    except Unusable:
        return False
    return False


def read_about(path: Path) -> dict[str, Any] | None:
    """What a directory says of itself, None if it cannot be read."""
    return _read_json(path / "about.json")


def _read_written(path: Path) -> dict[str, int]:
    """Bytes by day."""
    found = _read_json(path / "written.json") or {}
    return {day: size for day, size in found.items() if isinstance(size, int)}


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _day() -> str:
    return time.strftime("%Y-%m-%d")


def _names(folder: Path) -> list[str]:
    try:
        return [found.name for found in os.scandir(folder)]
    except OSError:
        return []
