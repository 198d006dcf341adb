"""Messages between gateway and worker: length-prefixed msgpack over an inherited Unix socket (`duet.channel`).

gateway → worker: `GenerationRequest | EmbeddingRequest | TranscriptionRequest | Cancel | ClearKv | Shutdown`
worker → gateway: `Ready | LoadFailed`, then `Events | EmbeddingResult | TranscriptionResult | KvReport`
"""

from __future__ import annotations

import msgspec

from engine.types import (
    Accepted,
    EmbeddingRequest,
    EmbeddingResult,
    Failed,
    Finished,
    GenerationRequest,
    KvReport,
    TextDelta,
    TranscriptionRequest,
    TranscriptionResult,
)


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Harmless if the request has already ended. A cancelled request sends nothing more."""

    id: str


class ClearKv(msgspec.Struct, frozen=True, tag="clear_kv"):
    """Forget all KV, in memory and on SSD. A `KvReport` follows."""


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


class Events(msgspec.Struct, frozen=True, tag="events"):
    """All events of one tick, of all requests, in order: one frame a tick, not one a token."""

    events: list[Accepted | TextDelta | Finished | Failed]


ToWorker = GenerationRequest | EmbeddingRequest | TranscriptionRequest | Cancel | ClearKv | Shutdown
FromWorker = Ready | LoadFailed | Events | EmbeddingResult | TranscriptionResult | KvReport | Failed
