"""Messages between gateway and worker: length-prefixed msgpack over an inherited Unix socket (`duet.channel`).

gateway → worker: `WorkerConfig` first, then `Request | Cancel | ClearKv | FreeMemory | PauseBatch | Ping | Shutdown`
worker → gateway: `Ready | LoadFailed`, then `EventFrame | KvReport | MemoryReport | BatchReport | Pong`
"""

from __future__ import annotations

import msgspec

from engine.types import BatchReport, Event, KvReport, MemoryReport, Request


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Harmless if the request has already ended. A cancelled request sends nothing more."""

    id: str


class ClearKv(msgspec.Struct, frozen=True, tag="clear_kv"):
    """Forget all KV, in memory and on SSD. A `KvReport` follows."""


class FreeMemory(msgspec.Struct, frozen=True, tag="free_memory"):
    """The machine is short of memory: give up what can be had again. KV that earned its place goes to SSD."""


class PauseBatch(msgspec.Struct, frozen=True, tag="pause_batch"):
    """While `on`, batch work pauses: another worker has better work. It still gets a small share of the time."""

    on: bool


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Say something. The loop answers between two steps, never a thread beside it: that would live on when the loop hangs."""


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """To a `Ping`: the loop goes round."""


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Finish nothing, exit 0."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded. `context` is its longest prompt plus answer in tokens, `weight_bytes` its weights' size.
    `capabilities` are of "chat", "vision", "embedding", "asr"."""

    capabilities: tuple[str, ...]
    context: int | None
    weight_bytes: int
    vocabulary: int


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    message: str


class EventFrame(msgspec.Struct, frozen=True, tag="events"):
    """All events of one tick, of all requests, in order: one frame a tick, not one a token."""

    events: list[Event]


Order = Cancel | ClearKv | FreeMemory | PauseBatch | Ping | Shutdown
ToWorker = Request | Order
Report = KvReport | MemoryReport | BatchReport
FromWorker = Ready | LoadFailed | EventFrame | Report | Pong
