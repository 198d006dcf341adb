"""Models as the API and an operator see them."""

from __future__ import annotations

from typing import Literal

import msgspec

from duet.wire import ReviewLimits
from engine.types.reports import BatchReport, MemoryReport

Role = Literal["chat", "completions", "vision", "ocr", "embedding", "asr"]
"""A model without a chat template has the role `completions` only; every chat model completes texts too."""
ModelState = Literal["absent", "unusable", "unloaded", "downloading", "loading", "loaded", "failed"]
Unloading = Literal["idle", "evicted", "pressure", "surplus", "asked", "stopping"]
"""Why a model was unloaded: its time to live passed; another model needed its memory; the machine was short of memory; models had
grown beyond their limit; an operator asked for it; the engine stops."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A model as `/v1/models` shows it. `bytes_on_disk` 0 means that it is not downloaded. `defaults` are sampling
    parameters, and `max_tokens` bounds an answer, for requests that name none. `stops` are added to those of a request.
    `ocr_prompt` goes with an image that comes without words. `problem` is why a folder cannot be used; its state is then
    `unusable`."""

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
    problem: str | None = None


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """One model's place in the pool.

    `estimate_bytes` is the estimate before a load, `charged_bytes` what the ledger charges, `memory_bytes` what its process holds
    according to its own report, `memory`. `running` requests are in its worker, which says more in `batch`; `waiting` requests
    are not there yet. `pinned` models are unloaded only when an operator asks; `resident` models are loaded at start.
    `ttl_seconds` None: it stays. `rests_seconds` is how long requests for it are refused, because it failed several times in a
    row. Counts begin when the engine starts. `problem` is why the model's folder cannot be used.
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
    problem: str | None = None


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
