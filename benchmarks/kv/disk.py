"""What the disk can do and what is written to it: the floor and the ledger of the cache's benchmarks."""

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
class Seen:
    """A file when it was looked at."""

    path: str
    size: int
    modified_ns: int


Snapshot = Mapping[int, Seen]
"""By inode: a file that is renamed into its place is the same file."""


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sequential_read(files: Sequence[Path]) -> tuple[int, float]:
    """Bytes and seconds of reading the files one after the other, in pieces of 1 MiB, into one buffer."""
    buffer = bytearray(READ_BYTES)
    total, begun = 0, time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total, time.perf_counter() - begun


def read_into_memory(files: Sequence[Path]) -> tuple[int, float]:
    """Bytes and seconds of reading the files one after the other, each into new memory that stays until the last is read: what
    they must at least take who want to have all of it."""
    begun, kept = time.perf_counter(), []
    for path in files:
        with path.open("rb", buffering=0) as file:
            view = memoryview(bytearray(path.stat().st_size))
            kept.append(view)
            while view and (count := file.readinto(view)):
                view = view[count:]
    return sum(view.nbytes for view in kept), time.perf_counter() - begun


def drop_from_page_cache(files: Sequence[Path]) -> bool:
    """Write the files back and ask the kernel to forget its copies. False where it cannot be asked, as on macOS.

    It is a request: pages that another process has mapped or is writing stay.
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


def snapshot(folder: Path) -> dict[int, Seen]:
    """All files below a folder. A file that goes while they are counted is left out."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            try:
                state = path.stat()
            except FileNotFoundError:
                continue
            found[state.st_ino] = Seen(str(path), state.st_size, state.st_mtime_ns)
    return found


def written_between(before: Snapshot, after: Snapshot) -> int:
    """Bytes written between two snapshots, as far as sizes show it: growth, and all of a file that is new or was replaced.

    An inode with another path and another time is a new file, as file systems use inodes again; a file that was being
    written at the first snapshot and has its final name at the second is then counted with what it had. Pages written in
    place, as a database does, do not show.
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
    """Adds up what is written below a folder, between `with` and its end, by looking at it every 30 ms."""

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
        self._look()

    @property
    def written_bytes(self) -> int:
        """After the end: all of it."""
        return self._written

    def _run(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            self._look()

    def _look(self) -> None:
        now = snapshot(self._folder)
        self._written += written_between(self._last, now)
        self._last = now


def process_written_bytes(pid: int) -> int | None:
    """What a process and its descendants have had the kernel write to disks since they began, logs and databases included.

    None where the kernel does not say (Linux: `write_bytes` of proc(5)'s `/proc/pid/io`). Those that ended do not count.
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
