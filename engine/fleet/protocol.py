"""Messages between gateway and worker: length-prefixed msgpack over an inherited Unix socket (`duet.channel`).

gateway → worker: `WorkerConfig` first, then `Request | Cancel | ClearKv | FreeMemory | PauseBatch | Ping | Shutdown`
worker → gateway: `Ready | LoadFailed`, then `EventFrame | KvReport | MemoryReport | BatchReport | Pong`
"""

from __future__ import annotations

import msgspec

from engine.types import BatchReport, Event, KvReport, MemoryReport, Request


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """End a request without an answer. Unknown ids are ignored: the request may just have ended. Nothing more is sent for it."""

    id: str


class ClearKv(msgspec.Struct, frozen=True, tag="clear_kv"):
    """Forget all KV, in memory and on SSD. A `KvReport` follows."""


class FreeMemory(msgspec.Struct, frozen=True, tag="free_memory"):
    """The machine is short of memory: give up what can be had again. KV that has earned its place goes to SSD."""


class PauseBatch(msgspec.Struct, frozen=True, tag="pause_batch"):
    """While `on`, batch work pauses: another worker has better work. It still gets a small share of the time."""

    on: bool


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Answer with `Pong`. The loop answers between two steps; a thread beside it would answer even while the loop hangs."""


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """The answer to a `Ping`: the loop runs."""


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """End at once with exit code 0; requests are not finished."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded. `capabilities` are some of "chat", "vision", "embedding", "asr". `context` is the most tokens
    that prompt and answer may have together, `weight_bytes` the size of the weights, `vocabulary` the number of token
    ids."""

    capabilities: tuple[str, ...]
    context: int | None
    weight_bytes: int
    vocabulary: int


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The model cannot be loaded; `message` says why and what to do. The process then ends."""

    message: str


class EventFrame(msgspec.Struct, frozen=True, tag="events"):
    """All events of one tick, of all requests, in order: one frame a tick, not one a token."""

    events: list[Event]


Order = Cancel | ClearKv | FreeMemory | PauseBatch | Ping | Shutdown
ToWorker = Request | Order
Report = KvReport | MemoryReport | BatchReport
FromWorker = Ready | LoadFailed | EventFrame | Report | Pong
