"""The tier in memory: blocks and checkpoints, the longest unused dropped first. On the model's thread.

What is new here is `dirty` until it is on SSD or given up. Ends of sequences (`tip`) wait before they are written, because
the next turn of a conversation outgrows them.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from engine.kvstore.index import Entry, Kind
from engine.worker.kvcache.records import Block, nbytes


@dataclass
class Held:
    """An entry with its content and the facts that go with it. `admitted`: it has earned its place on SSD."""

    entry: Entry
    content: Block
    facts: Mapping[str, str]
    dirty: bool
    admitted: bool = False
    pins: int = 0
    used: float = field(default_factory=time.monotonic)

    @property
    def bytes(self) -> int:
        return nbytes(self.content)


class MemoryTier:
    """Implements the planner's `View`. Pinned entries stay, also beyond `limit` bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.bytes = 0
        self._held: OrderedDict[bytes, Held] = OrderedDict()
        self._children: dict[tuple[bytes, Kind], dict[bytes, Entry]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: bytes) -> bool:
        return key in self._held

    def get(self, key: bytes) -> Held | None:
        return self._held.get(key)

    def newest_first(self) -> Iterator[Held]:
        return iter([*reversed(self._held.values())])

    def known(self, keys: Sequence[bytes]) -> set[bytes]:
        return {key for key in keys if key in self._held}

    def children(self, parents: Sequence[bytes], kind: Kind) -> list[Entry]:
        return [entry for parent in parents for entry in self._children.get((parent, kind), {}).values()]

    def snapshot(self, parents: Sequence[bytes]) -> Snapshot:
        """What another thread may plan with."""
        children = {
            (parent, kind): tuple(held.values())
            for parent in parents
            for kind in _KINDS
            if (held := self._children.get((parent, kind)))
        }
        named = {entry.key for held in children.values() for entry in held}
        return Snapshot(frozenset(self.known(parents) | named), children)

    def add(self, held: Held) -> list[Held]:
        """Take in an entry; one that is there stays as it is. Returns what had to go for it."""
        key = held.entry.key
        if (there := self._held.get(key)) is not None:
            there.admitted |= held.admitted
            there.dirty &= held.dirty
            self.touch([key])
            return []
        self._held[key] = held
        self.bytes += held.bytes
        self._children.setdefault((held.entry.parent, held.entry.kind), {})[key] = held.entry
        return self.shrink(self.limit_bytes)

    def touch(self, keys: Iterable[bytes]) -> None:
        """Note a use; the first key becomes the most recent, for an end is to go before its beginning."""
        now = time.monotonic()
        for key in reversed([*keys]):
            if held := self._held.get(key):
                held.used = now
                self._held.move_to_end(key)

    def drop(self, key: bytes) -> Held | None:
        held = self._held.pop(key, None)
        if held is not None:
            self.bytes -= held.bytes
            siblings = self._children[held.entry.parent, held.entry.kind]
            del siblings[key]
            if not siblings:
                del self._children[held.entry.parent, held.entry.kind]
        return held

    def clear(self) -> None:
        """Drop all, pinned or not."""
        self._held.clear()
        self._children.clear()
        self.bytes = 0

    def shrink(self, limit_bytes: int) -> list[Held]:
        """Drop the longest unused entries until `limit_bytes` are left. Returns them."""
        gone: list[Held] = []
        while self.bytes > limit_bytes:
            oldest = next((key for key, held in self._held.items() if not held.pins), None)
            if oldest is None:
                break
            held = self.drop(oldest)
            assert held is not None
            gone.append(held)
        return gone

    def forget(self, seconds: float) -> None:
        """Drop what is on SSD too and was not used for `seconds`."""
        until = time.monotonic() - seconds
        while self._held:
            key, held = next(iter(self._held.items()))
            if held.used > until or held.dirty or held.pins:
                return
            self.drop(key)


_KINDS: tuple[Kind, ...] = ("block", "checkpoint")


@dataclass(frozen=True)
class Snapshot:
    """A `View` of a moment, of what a prompt can share."""

    keys: frozenset[bytes]
    held: Mapping[tuple[bytes, Kind], tuple[Entry, ...]]

    def known(self, keys: Sequence[bytes]) -> set[bytes]:
        return {key for key in keys if key in self.keys}

    def children(self, parents: Sequence[bytes], kind: Kind) -> list[Entry]:
        return [entry for parent in parents for entry in self.held.get((parent, kind), ())]
