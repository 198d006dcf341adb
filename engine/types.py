"""What the API asks of a backend, and what comes back. No MLX, no HTTP, no process.

Everything here crosses the Unix socket to a worker as msgpack, so it is a `msgspec.Struct`.
Every generation ends in exactly one `Finished` or `Failed`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, Protocol

import msgspec

from duet.wire import Transcript, Usage

FinishReason = Literal["stop", "length"]
Priority = Literal["interactive", "normal", "batch"]
"""Whose turn it is when there is more work than room. Batch work also waits while other work runs in any worker."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one row picks its tokens. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 are off.

    `seed` fixes the row's draws whatever its neighbours do. Penalties follow OpenAI's definition (presence, frequency:
    subtracted from the logits of tokens already generated) and Hugging Face's (repetition: divides positive and
    multiplies negative logits of tokens of prompt and answer; 1 is off). `logit_bias` maps token ids to addends.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    logprobs: bool = False
    top_logprobs: int = 0


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """One piece of a message: text, or the bytes of an encoded image (PNG, JPEG, WebP, GIF)."""

    type: Literal["text", "image"]
    text: str = ""
    image: bytes = b""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str
    parts: tuple[Part, ...]
    name: str | None = None


class Structure(msgspec.Struct, frozen=True):
    """The form that an answer must have. `text` is a JSON schema, a regular expression that the whole answer matches, a JSON
    list of strings of which it is one, or a grammar (Lark's notation, or GBNF). `param` is the field that asked for it."""

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    text: str
    param: str


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """One answer to one conversation. `id` is unique among the live requests of a worker (`n` answers are n requests).

    `max_tokens` None means up to the context's end. `stop` are strings; the answer ends before the first of them.
    `template_options` reach the chat template (`enable_thinking` for instance). KV is shared within a `tenant` only;
    without `store` nothing of the request is kept for later ones. An answer that is not complete at
    `deadline` fails: see `Request`. With `stop_on_repetition` an answer that repeats one piece without end is cut off.
    """

    id: str
    model: str
    messages: tuple[Message, ...]
    sampling: SamplingParams = SamplingParams()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    template_options: dict[str, Any] = {}
    tenant: str = ""
    store: bool = True
    structure: Structure | None = None
    priority: Priority = "normal"
    deadline: float | None = None
    stop_on_repetition: bool = False


class CacheNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the KV cache had of a prompt: `tokens`, from `tier` ("ram", "ssd" or ""), and why no more: "" when that is all,
    else `cold`, `diverged_at(token, role)`, `evicted`, `layout`, `quota`, `corrupt` or `disabled`."""

    tokens: int = 0
    tier: str = ""
    reason: str = ""


class TokenLogprob(msgspec.Struct, frozen=True):
    """`token` is the token's own text (lossy for part of a character), `raw` its exact bytes, `logprob` is natural."""

    token: str
    raw: bytes
    logprob: float


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    """The worker took the request; from here on the HTTP status is 200."""

    id: str
    prompt_tokens: int
    cache: CacheNote = CacheNote()


class TextDelta(msgspec.Struct, frozen=True, omit_defaults=True, tag="delta"):
    """One generated token. `text` is what can be shown because of it: empty while a character or a possible stop string
    is incomplete. `logprob` and `top` are present when the request asked for them."""

    id: str
    text: str
    logprob: TokenLogprob | None = None
    top: tuple[TokenLogprob, ...] = ()


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """`text` is what was still held back when the answer ended. `repetition`: it went round in circles and was cut off."""

    id: str
    reason: FinishReason
    usage: Usage
    text: str = ""
    repetition: bool = False


class Failed(msgspec.Struct, frozen=True, omit_defaults=True, tag="failed"):
    """`code` names a class of `duet.errors`."""

    id: str
    code: str
    message: str
    param: str | None = None
    retry_after_seconds: int | None = None


Event = Accepted | TextDelta | Finished | Failed


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True, tag="embed"):
    """`inputs` are texts or token ids, one vector each. `dimensions` truncates and renormalises (Matryoshka)."""

    id: str
    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    tenant: str = ""
    priority: Priority = "normal"
    deadline: float | None = None


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """`vectors` is float32 little-endian, row-major, shape [len(inputs), dimensions], L2-normalised."""

    id: str
    vectors: bytes
    dimensions: int
    prompt_tokens: int


class TranscriptionRequest(msgspec.Struct, frozen=True, kw_only=True, tag="transcribe"):
    """`audio` is float32 little-endian mono at 16 kHz. `prompt` and `hotwords` must reach the model."""

    id: str
    model: str
    audio: bytes
    prompt: str | None = None
    hotwords: tuple[str, ...] = ()
    language: str | None = None
    temperature: float = 0.0
    tenant: str = ""
    priority: Priority = "normal"
    deadline: float | None = None


class Transcribed(msgspec.Struct, frozen=True, tag="transcribed"):
    id: str
    transcript: Transcript


class KvReport(msgspec.Struct, omit_defaults=True, tag="kv"):
    """One worker's KV cache: bytes and entries now, the rest counted since it started, but `written_today`. `off` says why
    nothing goes to SSD, "" when it does. Messages of a worker carry copies."""

    memory_bytes: int = 0
    memory_entries: int = 0
    disk_bytes: int = 0
    disk_entries: int = 0
    written_today: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    prompts: int = 0
    restored_tokens: int = 0
    checkpoints: int = 0
    refused: int = 0
    corrupt: int = 0
    spilled_away: int = 0
    off: str = ""


class BatchReport(msgspec.Struct, frozen=True, omit_defaults=True, tag="batch"):
    """One worker's batch: rows that decode, requests that have no row yet, tokens of KV that both hold, the bound of these (None
    before it is known what a token takes), and how often a row was swapped out since the worker started."""

    rows: int = 0
    waiting: int = 0
    kv_tokens: int = 0
    kv_tokens_bound: int | None = None
    preemptions: int = 0


class MemoryReport(msgspec.Struct, frozen=True, omit_defaults=True, tag="memory"):
    """What one worker process holds: MLX's arrays, the buffers it keeps for reuse, its peak, and what the system charges the
    process for. `working_set_bytes` is what Metal recommends for all processes together, 0 without Metal."""

    active_bytes: int = 0
    cache_bytes: int = 0
    peak_bytes: int = 0
    footprint_bytes: int = 0
    working_set_bytes: int = 0

    @property
    def held_bytes(self) -> int:
        """Memory that ends with the process. Where the footprint leaves the GPU's buffers out, MLX's own count is larger."""
        return max(self.footprint_bytes, self.active_bytes + self.cache_bytes)


class KvDirectory(msgspec.Struct, frozen=True):
    """KV of one model on disk. `owned`: a worker uses it now."""

    name: str
    model: str
    owned: bool
    bytes: int
    entries: int
    written_today: int


class KvStatus(msgspec.Struct, frozen=True):
    """All KV of this machine: the caps, the directories, and what each loaded model reports."""

    disk_bytes_cap: int
    write_bytes_a_day_cap: int
    directories: tuple[KvDirectory, ...]
    workers: dict[str, KvReport]


Request = GenerationRequest | EmbeddingRequest | TranscriptionRequest
"""Each has a `deadline`, in seconds of the system's monotonic clock, which all processes share. The gateway gives the request up
then, wherever it is, and so cancels it in the worker, where it ends by itself too."""

Role = Literal["chat", "vision", "ocr", "embedding", "asr"]


class ReviewLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of a meeting a model can review at once: segments to correct in one request, segments around them to read,
    glossary terms to choose from, and characters of transcript to summarise. `overview`: its overviews are worth reading."""

    window_segments: Annotated[int, msgspec.Meta(ge=1)] = 20
    context_segments: Annotated[int, msgspec.Meta(ge=0)] = 5
    glossary_terms: Annotated[int, msgspec.Meta(ge=1)] = 60
    summary_characters: Annotated[int, msgspec.Meta(ge=1)] = 24_000
    overview: bool = True


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
    are charged and `held_bytes` what their processes report. `available_bytes` None: unknown. `refused`: loads for which
    there was no memory."""

    preset: str
    limit_bytes: int
    ceiling_bytes: int
    ceiling: str
    charged_bytes: int
    held_bytes: int
    available_bytes: int | None
    swap_used_bytes: int
    pressure: Literal["normal", "warning", "critical"]
    waiting_for_memory: int
    refused: int
    spare: bool
    models: tuple[Placement, ...]


class Backend(Protocol):
    """The port between API and pool. Every method raises `duet.errors.DuetError`."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        """Events of one request. Loads the model if need be. Closing the iterator cancels the request in any state.

        Raises before the first event, or ends with `Finished` or `Failed`.
        """
        ...

    async def embed(self, request: EmbeddingRequest) -> Embedded: ...

    async def transcribe(self, request: TranscriptionRequest) -> Transcribed: ...

    def models(self) -> list[ModelInfo]: ...

    async def kv(self) -> KvStatus: ...

    async def clear_kv(self, model: str | None) -> int:
        """Forget the KV of a model or of all. Returns how many entries lay on disk without a worker. Raises `ModelNotFound`."""
        ...

    def pool(self) -> PoolStatus:
        """Memory, and every model that is here or was asked for."""
        ...

    def placement(self, name: str) -> Placement:
        """One model's place. Raises `ModelNotFound`."""
        ...

    async def load(self, name: str) -> Placement:
        """Load a model as a request would. Returns when it is loaded. Raises as `generate` does before its first event."""
        ...

    async def unload(self, name: str, *, force: bool = False) -> Placement:
        """Unload a model, pinned or not. Returns when its memory is back. Raises `Conflict` while it has requests, unless
        `force`: then they fail."""
        ...

    def pin(self, name: str, pinned: bool) -> Placement:
        """Let a model stay once it is loaded, or let it go like any other."""
        ...

    def progress(self, model: str) -> str:
        """What a request for this model waits for, in words ("loading …"); "" when nothing."""
        ...

    def resolve(self, name: str) -> ModelInfo:
        """The model that `name` (id, alias or role) means. Raises `ModelNotFound` with the ids there are."""
        ...
