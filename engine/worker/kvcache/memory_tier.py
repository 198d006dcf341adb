"""The tier in memory: blocks and checkpoints. The longest unused are dropped first. On the model's thread.

`writeback` draws the life of an entry.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from engine.kvstore.blobs import Tensor
from engine.kvstore.index import Entry, Kind

Content = Mapping[str, Any]
"""The arrays of one entry by name. Blocks that were read from SSD stay `Tensor`s."""


def content_bytes(content: Content) -> int:
    """Bytes that the arrays take in memory."""
    return sum(int(part.data.nbytes if isinstance(part, Tensor) else part.nbytes) for part in content.values())


@dataclass
class Kept:
    """An entry with its content and the facts that belong to it. Its life is drawn in `writeback`.

    `dirty`: it is not on SSD. `admitted`: it has earned its place there. `pins` counts the requests that need it in memory.
    `used` is a time of `time.monotonic`.
    """

    entry: Entry
    content: Content
    facts: Mapping[str, str]
    dirty: bool
    admitted: bool = False
    pins: int = 0
    used: float = field(default_factory=time.monotonic)

    @property
    def bytes(self) -> int:
        return content_bytes(self.content)


class MemoryTier:
    """Implements the planner's `View`. Pinned entries stay, even when they take more than `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._children: dict[tuple[bytes, Kind], dict[bytes, Entry]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: object) -> bool:
        return key in self._kept

    def get(self, key: bytes) -> Kept | None:
        return self._kept.get(key)

    def newest_first(self) -> Iterator[Kept]:
        return iter([*reversed(self._kept.values())])

    def known(self, keys: Sequence[bytes]) -> set[bytes]:
        return {key for key in keys if key in self._kept}

    def children(self, parents: Sequence[bytes], kind: Kind) -> list[Entry]:
        return [entry for parent in parents for entry in self._children.get((parent, kind), {}).values()]

    def snapshot(self, parents: Sequence[bytes]) -> Snapshot:
        """A copy of what lies after `parents`, for another thread to plan with."""
        children = {
            (parent, kind): tuple(entries.values())
            for parent in parents
            for kind in _KINDS
            if (entries := self._children.get((parent, kind)))
        }
        named = {entry.key for entries in children.values() for entry in entries}
        return Snapshot(frozenset(self.known(parents) | named), children)

    def add(self, kept: Kept) -> list[Kept]:
        """Take in an entry. One that is here already stays as it is. Returns the entries that were dropped to make room."""
        key = kept.entry.key
        if (here := self._kept.get(key)) is not None:
            here.admitted |= kept.admitted
            here.dirty &= kept.dirty
            self.touch([key])
            return []
        self._kept[key] = kept
        self.bytes += kept.bytes
        self._children.setdefault((kept.entry.parent, kept.entry.kind), {})[key] = kept.entry
        return self.shrink(self.limit_bytes)

    def touch(self, keys: Iterable[bytes]) -> None:
        """Note a use. The first key becomes the most recently used, so that a sequence is evicted from its end."""
        now = time.monotonic()
        for key in reversed([*keys]):
            if kept := self._kept.get(key):
                kept.used = now
                self._kept.move_to_end(key)

    def pin(self, keys: Iterable[bytes]) -> list[bytes]:
        """Keep entries from being dropped until `unpin`. Returns the keys of those that are here."""
        pinned = []
        for key in keys:
            if (kept := self._kept.get(key)) is not None:
                kept.pins += 1
                pinned.append(key)
        return pinned

    def unpin(self, keys: Iterable[bytes]) -> None:
        """Undo one `pin` of each key."""
        for key in keys:
            if (kept := self._kept.get(key)) is not None and kept.pins:
                kept.pins -= 1

    def drop(self, key: bytes) -> Kept | None:
        """Remove an entry, pinned or not. Returns it."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.bytes -= kept.bytes
            siblings = self._children[kept.entry.parent, kept.entry.kind]
            del siblings[key]
            if not siblings:
                del self._children[kept.entry.parent, kept.entry.kind]
        return kept

    def clear(self) -> None:
        """Drop everything, pinned or not."""
        self._kept.clear()
        self._children.clear()
        self.bytes = 0

    def shrink(self, limit_bytes: int) -> list[Kept]:
        """Drop the longest unused entries until `limit_bytes` are left. Returns them."""
        dropped: list[Kept] = []
        while self.bytes > limit_bytes:
            oldest = next((key for key, kept in self._kept.items() if not kept.pins), None)
            if oldest is None:
                break
            kept = self.drop(oldest)
            assert kept is not None
            dropped.append(kept)
        return dropped

    def forget(self, seconds: float) -> None:
        """Drop entries that are on SSD too and were not used for `seconds`."""
        until = time.monotonic() - seconds
        for key in [key for key, kept in takewhile(lambda item: item[1].used <= until, self._kept.items())
                    if not (kept.dirty or kept.pins)]:  # fmt: skip
            self.drop(key)


_KINDS: tuple[Kind, ...] = ("block", "checkpoint")


@dataclass(frozen=True)
class Snapshot:
    """A `View` of one moment, limited to what one prompt can share."""

    keys: frozenset[bytes]
    entries: Mapping[tuple[bytes, Kind], tuple[Entry, ...]]

    def known(self, keys: Sequence[bytes]) -> set[bytes]:
        return {key for key in keys if key in self.keys}

    def children(self, parents: Sequence[bytes], kind: Kind) -> list[Entry]:
        return [entry for parent in parents for entry in self.entries.get((parent, kind), ())]
