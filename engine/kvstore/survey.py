"""The KV directories of a home, seen from outside: what lies there, what is damaged, and clearing those that nobody uses."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.kvstore import blobs
from engine.kvstore.directory import SUFFIX, Contents, Directory, Limits
from engine.kvstore.index import Damaged, Index, IndexBusy
from engine.kvstore.lock import Owned, Unusable, is_owned
from engine.kvstore.notes import WrittenToday, read_about, read_lease

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """A directory as anyone may see it. `owned`: a process uses it now, and `lease` is what it may take: bytes on disk, and
    bytes written a day."""

    path: Path
    model: str
    owned: bool
    contents: Contents
    lease: tuple[int, int] = (0, 0)


def directories(root: Path) -> list[Path]:
    """The KV directories of a home, including those without an index."""
    return sorted(path.parent for path in root.glob("*/lock"))


def report(path: Path) -> Report:
    """Look at a directory without owning it or writing to it. Raises `Damaged` or `IndexBusy`."""
    about, written = read_about(path) or {}, WrittenToday(path).bytes
    index = Index(path / "index.sqlite", read_only=True)
    try:
        size, entries = index.size
    finally:
        index.close()
    owned = is_owned(path)
    lease = read_lease(path) if owned else (0, 0)
    return Report(path, str(about.get("model", "?")), owned, Contents(size, entries, written), lease)


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
        except (Owned, Unusable, Damaged, IndexBusy) as error:
            logger.info("KV is left alone: %s", error, extra={"action": "kv_not_cleared"})
    return removed


def damaged_files(path: Path) -> Iterator[tuple[Path, str]]:
    """Read every file of a directory and yield those that are not what was written, with the cause. Needs no lock: a file that
    disappears meanwhile does not count."""
    for file in sorted((path / "files").glob(f"*/*{SUFFIX}")):
        try:
            blobs.read(file)
        except blobs.Corrupt as error:
            if file.exists():
                yield file, str(error)
