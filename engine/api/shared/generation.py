"""Fields by which OpenAI's dialects ask for text, and the part of a request that follows from them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from pydantic import BeforeValidator, Field, StrictBool, StrictInt, StrictStr, field_validator
from pydantic.types import StrictFloat

from duet.errors import InvalidRequest
from engine.api.shared.caller import Caller
from engine.api.shared.fields import MAX_VOCABULARY, Lenient, Text
from engine.api.shared.structure import (
    Choices,
    FormText,
    OptionalSchema,
    ResponseFormat,
    StructuredOutputs,
    structure_of,
)
from engine.types import GenerationRequest, ModelInfo, Priority, SamplingParams

MAX_STOPS = 16
MAX_TOKENS = 1_000_000_000
MAX_BIASES = 4096
MAX_CHOICES_A_PROMPT = 16
MAX_CHOICES_A_CALL = 128
"""Half of the requests that may be under way for a model by default, so that a call can succeed beside others."""
MAX_STOP_CHARACTERS = 1024
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


def _strings(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _few_biases(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"{len(value)} tokens; a request takes {MAX_BIASES}")
    return value


class StreamOptions(Lenient):
    include_usage: StrictBool | None = False


class GenerationFields(Lenient):
    """What chat and completions have in common."""

    model: StrictStr = Field(min_length=1, max_length=512)
    stream: StrictBool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: StrictInt | None = Field(None, ge=1, le=MAX_TOKENS)
    temperature: StrictFloat | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: StrictFloat | None = Field(None, gt=0, le=1)
    top_k: StrictInt | None = Field(None, ge=0, lt=MAX_VOCABULARY)
    min_p: StrictFloat | None = Field(None, ge=0, le=1)
    seed: StrictInt | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    presence_penalty: StrictFloat | None = Field(None, ge=-2, le=2)
    frequency_penalty: StrictFloat | None = Field(None, ge=-2, le=2)
    repetition_penalty: StrictFloat | None = Field(None, gt=0, le=10)
    logit_bias: Annotated[dict[str, StrictFloat] | None, BeforeValidator(_few_biases)] = None
    n: StrictInt | None = Field(1, ge=1, le=MAX_CHOICES_A_PROMPT)
    stop: Annotated[list[Text] | None, BeforeValidator(_strings)] = Field(None, max_length=MAX_STOPS)
    store: StrictBool | None = None
    """False: nothing of this request is kept for later ones, no KV of its prompt either."""
    stop_on_repetition: StrictBool | None = None
    """Cut off an answer that repeats one piece without end (`stop_reason: "repetition"`). By default for OCR models."""
    priority: Priority | None = None
    """The same as the header `X-Duet-Priority`, for clients that send no headers of their own."""
    # The answer's form: one of these. "" asks for none.
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: OptionalSchema = None
    guided_regex: FormText = None
    guided_choice: Choices | None = None
    guided_grammar: FormText = None

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: list[str] | None) -> list[str] | None:
        if any(not stop for stop in value or ()):
            raise ValueError("a stop string must not be empty")
        if any(len(stop) > MAX_STOP_CHARACTERS for stop in value or ()):
            raise ValueError(f"a stop string has at most {MAX_STOP_CHARACTERS} characters")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _biases(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for token, bias in (value or {}).items():
            if not (token.isascii() and token.isdecimal() and len(token) <= 10 and int(token) < MAX_VOCABULARY):
                raise ValueError(f"{token[:32]!r} is not a token id")
            if not -100 <= bias <= 100:
                raise ValueError("a bias lies between -100 and 100")
        return value

    @field_validator("stream_options")
    @classmethod
    def _needs_stream(cls, value: StreamOptions | None, info: Any) -> StreamOptions | None:
        if value is not None and value.include_usage and not info.data.get("stream"):
            raise ValueError("needs stream: true")
        return value

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def holders(self) -> list[tuple[Lenient, str]]:
        """Objects that may have brought unknown fields, with their paths: see `fields.ignored`."""
        found: list[tuple[Lenient | None, str]] = [
            (self, ""),
            (self.stream_options, "stream_options"),
            (self.response_format, "response_format"),
            (self.response_format and self.response_format.json_schema, "response_format.json_schema"),
            (self.structured_outputs, "structured_outputs"),
        ]
        return [(holder, place) for holder, place in found if holder is not None]


def base_request(
    body: GenerationFields, model: ModelInfo, caller: Caller, *, logprobs: int | None
) -> GenerationRequest:
    """A request without its prompt and its id. `logprobs` is how many alternatives each token gets; None: no log-probabilities.
    Raises `InvalidRequest`."""
    given = {name: getattr(body, name) for name in _SAMPLING if getattr(body, name) is not None}
    values: dict[str, Any] = {**model.defaults, **given}
    return GenerationRequest(
        id="",
        model=model.id,
        sampling=SamplingParams(
            **values,
            seed=body.seed,
            logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
            logprobs=logprobs is not None,
            top_logprobs=logprobs or 0,
        ),
        max_tokens=model.max_tokens if body.max_tokens is None else body.max_tokens,
        stop_strings=(*(body.stop or ()), *model.stops),
        tenant=caller.tenant,
        store=body.store is not False,
        structure=structure_of(body),
        priority=body.priority or caller.priority,
        deadline=caller.deadline,
        stop_on_repetition="ocr" in model.roles if body.stop_on_repetition is None else body.stop_on_repetition,
    )


def choices(prompts: Sequence[GenerationRequest], n: int) -> list[GenerationRequest]:
    """`n` requests for each prompt, in the order of their indexes. The choices of one seed get consecutive seeds. Raises
    `InvalidRequest` for more than a call may have."""
    if len(prompts) * n > MAX_CHOICES_A_CALL:
        raise InvalidRequest(
            f"{len(prompts)} prompts with {n} choices each are {len(prompts) * n}; a request takes {MAX_CHOICES_A_CALL}",
            param="n",
        )
    stem = secrets.token_hex(8)
    return [
        msgspec.structs.replace(prompt, id=f"{stem}-{i * n + j}", sampling=_seeded(prompt.sampling, j))
        for i, prompt in enumerate(prompts)
        for j in range(n)
    ]


def _seeded(sampling: SamplingParams, choice: int) -> SamplingParams:
    if sampling.seed is None or choice == 0:
        return sampling
    # 63 bits fit a signed integer of the wire.
    return msgspec.structs.replace(sampling, seed=(sampling.seed + choice) % (1 << 63))
