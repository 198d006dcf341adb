"""What the API asks of a model. Every request crosses the Unix socket as msgpack."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Priority = Literal["interactive", "normal", "batch"]
"""Which request goes first when there is more work than room. Batch work also waits while other work runs in any worker."""


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
    """One piece of a message: text, or an image as the bytes of its file. `pixels` is the image's size by its header, and `param`
    the field that errors of it name."""

    type: Literal["text", "image"]
    text: str = ""
    image: bytes = b""
    pixels: int = 0
    param: str = "messages"


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a conversation. `role` is what the chat template knows: system, user, assistant."""

    role: str
    parts: tuple[Part, ...]
    name: str | None = None


class Structure(msgspec.Struct, frozen=True):
    """The form that an answer must have. `text` is a JSON schema, a regular expression that the whole answer matches, a JSON
    list of strings of which the answer is one, or a grammar (Lark's notation, or GBNF). `param` is the field that asked for it.
    """

    kind: Literal["json_schema", "regex", "choice", "grammar"]
    text: str
    param: str


TemplateOptions = dict[str, Any]
"""Variables of the chat template by name (`enable_thinking` for instance): JSON values that msgpack can carry. They come in
the body of an HTTP request, so they are bounded with it."""


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """One answer to one conversation, or the continuation of one raw `prompt`. `id` is unique among the live requests of a worker
    (`n` answers are n requests).

    Either `messages` go through the chat template, or `prompt` is continued as it is: a text, which gets the tokens that its
    tokenizer puts around a text unless `add_special_tokens` is off, or token ids. `echo`: the answer begins with the prompt.
    `max_tokens` None means up to the context's end. The answer ends before the first of the `stop_strings`. KV is shared
    within a `tenant` only; without `store` nothing of the request is kept for later ones. `deadline`: see `Request`. With
    `stop_on_repetition` an answer that repeats one piece without end is cut off.
    """

    id: str
    model: str
    messages: tuple[Message, ...] = ()
    prompt: str | tuple[int, ...] | None = None
    add_special_tokens: bool = True
    echo: bool = False
    sampling: SamplingParams = SamplingParams()
    max_tokens: int | None = None
    stop_strings: tuple[str, ...] = ()
    template_options: TemplateOptions = {}
    tenant: str = ""
    store: bool = True
    structure: Structure | None = None
    priority: Priority = "normal"
    deadline: float | None = None
    stop_on_repetition: bool = False


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True, tag="embed"):
    """`inputs` are texts or token ids; each becomes one vector. `dimensions` truncates and renormalises (Matryoshka)."""

    id: str
    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    tenant: str = ""
    priority: Priority = "normal"
    deadline: float | None = None


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


Request = GenerationRequest | EmbeddingRequest | TranscriptionRequest
"""Each has a `deadline`, in seconds of the system's monotonic clock, which all processes share. At that time the gateway gives
the request up wherever it is, which cancels it in the worker. The worker also ends it by itself."""
