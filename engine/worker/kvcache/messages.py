"""What the model's thread and the disk's thread tell each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.kvstore.blobs import Tensor
from engine.kvstore.index import Entry
from engine.worker.kvcache.memory_tier import Snapshot
from engine.worker.kvcache.planner import Match, Prompt

Tensors = Mapping[str, Tensor]
Facts = Mapping[str, str]


@dataclass(frozen=True)
class Find:
    """Plan `prompt` over RAM (`snapshot`) and SSD. Read what RAM lacks if that restores more than the `floor` tokens of RAM
    alone. Note the keys in `sight` as seen.

    `epoch` counts clearings: nothing from before a clearing is taken in after it. With `now` the row is about to begin, and
    everything is read; without it only as much is read ahead as there is room for.
    """

    id: str
    epoch: int
    prompt: Prompt
    snapshot: Snapshot
    floor: int
    has_state: bool
    sight: tuple[bytes, ...]
    now: bool = False


@dataclass(frozen=True)
class Read:
    """One file that `Find` needs, sent as soon as it is read."""

    id: str
    epoch: int
    entry: Entry
    tensors: Tensors
    facts: Facts


@dataclass(frozen=True)
class Found:
    """The answer to `Find`, after its `Read`s of `read_bytes`: the match, and whether a file was damaged. `late`: there was no
    room to read ahead, so the request asks again when its row begins."""

    id: str
    epoch: int
    match: Match
    corrupt: bool = False
    read_bytes: int = 0
    late: bool = False


@dataclass(frozen=True)
class Seen:
    """Those keys of `Find.sight` that had been seen before."""

    id: str
    keys: frozenset[bytes]


@dataclass(frozen=True)
class Save:
    """Write an entry."""

    entry: Entry
    tensors: Tensors
    facts: Facts


@dataclass(frozen=True)
class Saved:
    """The answer to `Save`. `kept` is False when a limit or the disk forbade it."""

    key: bytes
    kept: bool


@dataclass(frozen=True)
class Touch:
    """Note a use of these entries."""

    keys: tuple[bytes, ...]


@dataclass(frozen=True)
class Clear:
    """Forget everything on SSD."""


@dataclass(frozen=True)
class Cleared:
    """The answer to `Clear`."""

    entries: int


Order = Save | Touch | Clear
Answer = Read | Found | Seen | Saved | Cleared
