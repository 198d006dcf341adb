"""How fast the disk reads, and how much is written to it, for the cache's benchmarks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from benchmarks.footprint import descends, processes

READ_BYTES = 1 << 20
POLL_SECONDS = 0.03


@dataclass(frozen=True)
class FileState:
    """A file at the time of a snapshot."""

    path: str
    size: int
    modified_ns: int


Snapshot = Mapping[int, FileState]
"""Files by inode: a file keeps its inode when it is renamed into its place."""


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sequential_read(files: Sequence[Path]) -> tuple[int, float]:
    """Read the files one after the other, in pieces of 1 MiB, into one buffer. Returns bytes and seconds."""
    buffer = bytearray(READ_BYTES)
    total, begun = 0, time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total, time.perf_counter() - begun


def read_into_memory(files: Sequence[Path]) -> tuple[int, float]:
    """Read the files one after the other, each into new memory that is kept until the last one is read. Returns bytes
    and seconds. A reader that needs all the data at once cannot be faster."""
    begun, kept = time.perf_counter(), []
    for path in files:
        with path.open("rb", buffering=0) as file:
            view = memoryview(bytearray(path.stat().st_size))
            kept.append(view)
            while view and (count := file.readinto(view)):
                view = view[count:]
    return sum(view.nbytes for view in kept), time.perf_counter() - begun


def drop_from_page_cache(files: Sequence[Path]) -> bool:
    """Write the files back and ask the kernel to drop its copies. Returns False where that is impossible, as on macOS.

    The kernel may refuse: it keeps pages that another process has mapped or is writing.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
    return True


def snapshot(folder: Path) -> dict[int, FileState]:
    """All files below a folder. A file that disappears meanwhile is left out."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            try:
                state = path.stat()
            except FileNotFoundError:
                continue
            found[state.st_ino] = FileState(str(path), state.st_size, state.st_mtime_ns)
    return found


def written_between(before: Snapshot, after: Snapshot) -> int:
    """Bytes written between two snapshots, derived from file sizes: growth, and the whole size of new or replaced
    files.

    File systems reuse inodes, so an inode with another path and another time counts as a new file. If a file is being
    written at the first snapshot and has its final name at the second, its first bytes therefore count twice. Pages
    that are overwritten in place, as databases do, do not count.
    """
    total = 0
    for inode, now in after.items():
        then = before.get(inode)
        if then is None or now.size < then.size:
            total += now.size
        elif now.modified_ns != then.modified_ns:
            total += now.size - then.size if now.path == then.path else now.size
    return total


class WriteLedger:
    """Adds up the bytes written below a folder inside a `with` block. It takes a snapshot every 30 ms."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last = snapshot(folder)
        self._written = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="write-ledger", daemon=True)

    def __enter__(self) -> WriteLedger:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._sample()

    @property
    def written_bytes(self) -> int:
        """The total. It is complete after the `with` block."""
        return self._written

    def _run(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            self._sample()

    def _sample(self) -> None:
        now = snapshot(self._folder)
        self._written += written_between(self._last, now)
        self._last = now


def process_written_bytes(pid: int) -> int | None:
    """Bytes that a process and its descendants have written to disks since they began, including logs and databases.

    None where the kernel does not count them (Linux does: `write_bytes` in `/proc/pid/io`, proc(5)). Descendants that
    have ended do not count.
    """
    table = processes()
    parents = {child: parent for child, (parent, _, _) in table.items()}
    counts = [_write_bytes(child) for child in table if descends(child, pid, parents)]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _write_bytes(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("write_bytes:")), None)
