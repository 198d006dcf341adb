"""What a worker process is told to be: its first message. Its command line has the channel's descriptor and nothing else.

A new setting of workers is a field here. One that depends on the model is a field of `ModelOptions`, and the card's key has the
same name. One that depends on the machine is set in `engine.pool.launcher.worker_config`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from engine.kvstore.leases import Lease

WorkerRole = Literal["chat", "embedding", "asr"]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Name = Annotated[str, msgspec.Meta(min_length=1)]


class ModelOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a model runs, by its card. `kv_bits`: plain KV is quantised to that many bits; then rows run one after another.
    `answer_format` names a file of `engine/worker/answers/formats`; None: it is read off each prompt."""

    kv_bits: Literal[4, 8] | None = None
    answer_format: Literal["plain", "qwen"] | None = None


class BatchLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """`max_rows` sequences decode together; `chunk_tokens` of a prompt are computed between two of their steps."""

    max_rows: Positive = 16
    chunk_tokens: Positive = 256


class WorkerConfig(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, tag="worker_config"
):
    """One worker. Values are checked when the message is read: see `msgspec.Meta`.

    `model` is its id. `path` is its folder as the file system writes it (`os.fsencode`): names of files need not be UTF-8. `kv`
    None: no KV is kept for later prompts. `active_kv_bytes` bounds the KV of running requests; None: it is unbounded.
    `wired_limit_bytes` is what Metal keeps wired; 0: nothing is asked of it.
    """

    model: Name
    path: Annotated[bytes, msgspec.Meta(min_length=1)]
    role: WorkerRole = "chat"
    options: ModelOptions = ModelOptions()
    batch: BatchLimits = BatchLimits()
    kv: Lease | None = None
    active_kv_bytes: Positive | None = None
    wired_limit_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
