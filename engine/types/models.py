"""Models as the API and an operator see them."""

from __future__ import annotations

from typing import Literal

import msgspec

from duet.wire import ReviewLimits
from engine.types.reports import BatchReport, MemoryReport

Role = Literal["chat", "vision", "ocr", "embedding", "asr"]


ModelState = Literal["absent", "unloaded", "downloading", "loading", "loaded", "failed"]
Unloading = Literal["idle", "evicted", "pressure", "surplus", "asked", "stopping"]
"""Why a model was unloaded: its TTL, for another model, because the machine was short of memory, because models had grown beyond
their limit, by an operator, at the end."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A model as `/v1/models` shows it. `state` is where it is now; `bytes_on_disk` 0 means not downloaded.
    `defaults` are sampling parameters, and `max_tokens` the answer's bound, for requests that name none. `stops` are
    added to the request's own. `ocr_prompt` goes with an image that comes without words."""

    id: str
    aliases: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ()
    state: ModelState = "unloaded"
    bytes_on_disk: int = 0
    context: int | None = None
    demonstration: bool = False
    description: str = ""
    review: ReviewLimits | None = None
    defaults: dict[str, float] = {}
    ocr_prompt: str | None = None
    stops: tuple[str, ...] = ()
    max_tokens: int | None = None


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """One model's place in the pool.

    Bytes: `estimate_bytes` before a load, `charged_bytes` in the ledger, `memory_bytes` what its process holds by its own
    report, `memory`. `running` requests are in its worker, which says more in `batch`; `waiting` ones not yet. `pinned` models
    are unloaded only when asked to; `resident` ones are loaded at start. `ttl_seconds` None: it stays. `rests_seconds`: requests
    for it are refused for so long, because it failed several times in a row. Counts are since the engine started.
    """

    id: str
    state: ModelState
    pinned: bool
    resident: bool
    estimate_bytes: int
    charged_bytes: int
    memory_bytes: int | None
    memory: MemoryReport | None
    ttl_seconds: float | None
    idle_seconds: float | None
    loaded_seconds: float | None
    running: int
    waiting: int
    batch: BatchReport | None
    loads: int
    crashes: int
    rests_seconds: float
    unloads: dict[Unloading, int]
    pid: int | None


class PoolStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Memory and models. `limit_bytes` is what models may hold now, of at most `ceiling_bytes`; `charged_bytes` is what they
    are charged, and `resident_bytes` what their processes report (`held_bytes` on the wire). `available_bytes` None: unknown.
    `refused`: loads for which there was no memory."""

    preset: str
    limit_bytes: int
    ceiling_bytes: int
    ceiling: str
    charged_bytes: int
    resident_bytes: int = msgspec.field(name="held_bytes")
    available_bytes: int | None
    swap_used_bytes: int
    pressure: Literal["normal", "warning", "critical"]
    waiting_for_memory: int
    refused: int
    spare: bool
    models: tuple[Placement, ...]
