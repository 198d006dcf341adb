"""How much of the disk each worker's KV may take: the gateway splits the caps of the home among the models that are loaded.

A lease never shrinks while its worker lives, so the caps hold without any worker having to answer: what is granted is half of
what is left, or what the model has lying there already. Directories without a worker are the gateway's to trim.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.kvstore.directory import Directory, Limits, Owned, Report, Unusable, directories, report
from engine.kvstore.index import Damaged

logger = logging.getLogger(__name__)

FOLDER: Final = "kv"
"""Under the home."""
LEAST_SHARE: Final = 4
"""Directories without a worker give way until a newcomer can have a fourth of the cap, if there is that much."""


@dataclass(frozen=True)
class Lease:
    """What one worker may do with KV: bytes in memory, bytes on disk, bytes written a day. No `root`: memory only."""

    memory_bytes: int
    root: Path | None = None
    disk_bytes: int = 0
    write_bytes: int = 0
    free_bytes: int = 0
    age_seconds: float = 0.0
    flush_seconds: float = 0.0

    def arguments(self) -> list[str]:
        """For the command line of `engine.worker`."""
        found = ["--kv-memory-bytes", str(self.memory_bytes), "--kv-flush-seconds", str(self.flush_seconds)]
        if self.root is not None:
            found += ["--kv-root", str(self.root), "--kv-disk-bytes", str(self.disk_bytes)]
            found += ["--kv-write-bytes", str(self.write_bytes), "--kv-free-bytes", str(self.free_bytes)]
            found += ["--kv-age-seconds", str(self.age_seconds)]
        return found


@dataclass(frozen=True)
class Caps:
    """What all models of a home share."""

    disk_bytes: int
    write_bytes_a_day: int
    free_bytes: int
    age_seconds: float


class Leases:
    """Owned by the gateway. Methods read and trim directories, which may take a moment: call them off the event loop, one at
    a time. Nothing here raises: what cannot be read takes no part."""

    def __init__(self, root: Path, caps: Caps, *, memory_bytes: int, flush_seconds: float) -> None:
        self.root, self.caps = root, caps
        self._memory_bytes, self._flush_seconds = memory_bytes, flush_seconds
        self._granted: dict[str, tuple[int, int]] = {}

    def grant(self, model: str) -> Lease:
        """For a worker of `model` that is about to start."""
        if not self.caps.disk_bytes or not self._memory_bytes:
            return Lease(self._memory_bytes, flush_seconds=self._flush_seconds)
        _make_private(self.root)
        disk, written = self._left(model)
        wanted = self.caps.disk_bytes // LEAST_SHARE
        if disk < wanted:
            self.trim(wanted - disk, spare=model)
            disk, written = self._left(model)
        own = sum(found.contents.bytes for found in self.reports() if found.model == model)
        share = max(disk // 2, min(disk, own))
        writes = max(0, written // 2)
        self._granted[model] = (share, writes)
        caps = self.caps
        return Lease(
            self._memory_bytes, self.root, max(0, share), writes, caps.free_bytes, caps.age_seconds, self._flush_seconds
        )

    def give_back(self, model: str) -> None:
        """Its worker has ended."""
        self._granted.pop(model, None)

    def trim(self, size: int = 0, *, spare: str | None = None) -> int:
        """Free `size` bytes of directories without a worker, the longest unused entries first, and what is over age; and make
        the rest fit the cap. Returns the bytes freed."""
        with contextlib.ExitStack() as stack:
            owned = [stack.enter_context(contextlib.closing(found)) for found in self._unowned(spare)]
            before = sum(found.contents.bytes for found in owned)
            for found in owned:
                found.sweep()
            kept = sum(found.contents.bytes for found in owned)
            room = self.caps.disk_bytes - sum(disk for disk, _ in self._granted.values())
            target = min(kept - size, room) if size else min(kept, room)
            while kept > max(0, target):
                oldest = [(entries[0].used, found) for found in owned if (entries := found.index.oldest(1))]
                if not oldest:
                    break
                found = min(oldest, key=lambda pair: pair[0])[1]
                found.evict(max(0, found.contents.bytes - max(1, kept - target)), at_most=16)
                kept = sum(found.contents.bytes for found in owned)
            return before - kept

    def reports(self) -> list[Report]:
        """Every directory of the home, owned or not."""
        found = []
        for path in directories(self.root):
            try:
                found.append(report(path))
            except Damaged as error:
                logger.warning("a KV directory cannot be read: %s", error, extra={"action": "kv_unreadable"})
        return found

    def _left(self, model: str) -> tuple[int, int]:
        """Bytes on disk and of today's writes that neither another worker nor a directory without one has."""
        others = [lease for name, lease in self._granted.items() if name != model]
        idle = [found for found in self.reports() if found.model != model and found.model not in self._granted]
        disk = self.caps.disk_bytes - sum(disk for disk, _ in others) - sum(found.contents.bytes for found in idle)
        written = sum(writes for _, writes in others) + sum(found.contents.written_today for found in idle)
        return max(0, disk), max(0, self.caps.write_bytes_a_day - written)

    def _unowned(self, spare: str | None) -> Iterator[Directory]:
        limits = Limits(self.caps.disk_bytes, 0, max_age_seconds=self.caps.age_seconds)
        for found in self.reports():
            if found.model == spare or found.model in self._granted:
                continue
            try:
                yield Directory(found.path, limits, {"model": found.model})
            except (Owned, Unusable, Damaged):
                continue


def _make_private(root: Path) -> None:
    """Prompts can be read out of KV: nobody else may, and neither search nor backup has a use for it."""
    with contextlib.suppress(OSError):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
        (root / ".metadata_never_index").touch()
