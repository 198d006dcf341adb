"""OpenAI's chat request, as clients send it (https://platform.openai.com/docs/api-reference/chat/create).

What we act on is validated here. What we know but cannot do yet is refused with its name. What we do not know is kept in
`model_extra` and reported in `X-Duet-Ignored`, since real clients send it. Types are strict: `"0.5"` is no number.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    field_validator,
    model_validator,
)
from pydantic.types import StrictFloat

from engine.api.schemas.base import Lenient
from engine.api.schemas.structure import Choices, ResponseFormat, Schema, StructuredOutputs
from engine.types import Priority

MAX_STOPS = 16
MAX_TOKENS = 1_000_000_000
MAX_VOCABULARY = 1 << 31
MAX_BIASES = 4096


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half a surrogate pair, which is no character") from error
    return text


Text = Annotated[StrictStr, AfterValidator(_encodable)]
"""JSON can write halves of surrogate pairs; UTF-8, in which everything goes on, cannot."""


Refused = Annotated[Any, Field(description="Not supported yet: a request that needs it is refused.")]


class ImageUrl(Lenient):
    url: StrictStr
    detail: Literal["auto", "low", "high"] | None = None


def _image_object(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value  # some clients send the bare address


class ContentPart(Lenient):
    """One piece of a message: the field named by `type` is set."""

    type: Literal["text", "image_url"]
    text: Text | None = None
    image_url: Annotated[ImageUrl | None, BeforeValidator(_image_object)] = None

    @field_validator("type", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value in ("input_audio", "file", "refusal", "video_url"):
            raise ValueError(f"{value} parts are not supported yet")
        return value

    @model_validator(mode="after")
    def _has_its_field(self) -> ContentPart:
        if (self.text if self.type == "text" else self.image_url) is None:
            raise ValueError(f"a {self.type} part needs {self.type}")
        return self


def _parts(value: Any) -> Any:
    """A string is one part of text, and null is none."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    return [] if value is None else value


class ChatMessage(Lenient):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[list[ContentPart] | None, BeforeValidator(_parts)] = None
    name: Text | None = None

    @field_validator("role")
    @classmethod
    def _developer_is_system(cls, role: str) -> str:
        # OpenAI's newer name of the system message; templates of open models know only the old one.
        return "system" if role == "developer" else role

    @model_validator(mode="after")
    def _has_content(self) -> ChatMessage:
        extra = self.model_extra or {}
        if extra.get("tool_calls") or extra.get("function_call") or self.role == "tool":
            raise ValueError("tool calls are not supported yet")
        if not self.content and self.role != "assistant":
            raise ValueError(f"a {self.role} message needs content")
        return self


class StreamOptions(Lenient):
    include_usage: StrictBool = False


def _strings(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class ChatCompletionRequest(Lenient):
    model: StrictStr = Field(min_length=1, max_length=512)
    messages: list[ChatMessage] = Field(min_length=1)
    stream: StrictBool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: StrictInt | None = Field(None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: StrictInt | None = Field(None, ge=1, le=MAX_TOKENS)
    temperature: StrictFloat | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: StrictFloat | None = Field(None, gt=0, le=1)
    top_k: StrictInt | None = Field(None, ge=0, lt=MAX_VOCABULARY)
    min_p: StrictFloat | None = Field(None, ge=0, le=1)
    seed: StrictInt | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    presence_penalty: StrictFloat | None = Field(None, ge=-2, le=2)
    frequency_penalty: StrictFloat | None = Field(None, ge=-2, le=2)
    repetition_penalty: StrictFloat | None = Field(None, gt=0, le=10)
    logit_bias: dict[str, StrictFloat] | None = None
    logprobs: StrictBool | None = False
    top_logprobs: StrictInt | None = Field(None, ge=0, le=20)
    n: StrictInt | None = Field(1, ge=1, le=16)
    stop: Annotated[list[Text] | None, BeforeValidator(_strings)] = Field(None, max_length=MAX_STOPS)
    enable_thinking: StrictBool | None = None
    store: StrictBool | None = None
    """False: nothing of this request is kept for later ones, no KV of its prompt either."""
    stop_on_repetition: StrictBool | None = None
    """Cut off an answer that repeats one piece without end (`stop_reason: "repetition"`). By default for OCR models."""
    priority: Priority | None = None
    """Whose turn it is; the header `X-Duet-Priority` says the same for clients that send no fields of their own."""
    chat_template_kwargs: dict[str, Any] | None = None
    # The answer's form: one of these.
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = None
    guided_regex: StrictStr | None = None
    guided_choice: Choices | None = None
    guided_grammar: StrictStr | None = None
    # Known, and refused until they can be done.
    tools: Refused = None
    tool_choice: Refused = None
    functions: Refused = None
    function_call: Refused = None
    modalities: list[str] | None = None
    audio: Refused = None
    prediction: Refused = None
    web_search_options: Refused = None

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: list[str] | None) -> list[str] | None:
        if any(not stop for stop in value or ()):
            raise ValueError("a stop string must not be empty")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _biases(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if len(value or ()) > MAX_BIASES:
            raise ValueError(f"at most {MAX_BIASES} tokens")
        for token, bias in (value or {}).items():
            if not (token.isascii() and token.isdecimal() and len(token) <= 10 and int(token) < MAX_VOCABULARY):
                raise ValueError(f"{token[:32]!r} is not a token id")
            if not -100 <= bias <= 100:
                raise ValueError("a bias lies between -100 and 100")
        return value

    @field_validator("tools", "functions", "audio", "prediction", "web_search_options")
    @classmethod
    def _not_yet(cls, value: Any) -> Any:
        if value:
            raise ValueError("is not supported yet")
        return value

    @field_validator("tool_choice", "function_call")
    @classmethod
    def _no_tool_choice(cls, value: Any) -> Any:
        # Without tools "auto" asks for nothing.
        if value not in (None, "none", "auto"):
            raise ValueError("is not supported yet")
        return value

    @field_validator("modalities")
    @classmethod
    def _only_text_out(cls, value: list[str] | None) -> list[str] | None:
        if value not in (None, ["text"]):
            raise ValueError("only ['text'] is supported")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: Any) -> int | None:
        if value and not info.data.get("logprobs"):
            raise ValueError("needs logprobs: true")
        return value

    @field_validator("stream_options")
    @classmethod
    def _needs_stream(cls, value: StreamOptions | None, info: Any) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("needs stream: true")
        return value


def ignored_fields(body: ChatCompletionRequest) -> list[str]:
    """Names of fields that were sent and have no effect, each once, as paths without indexes."""
    names = [name for name, value in (body.model_extra or {}).items() if value is not None]
    for holder, place in _holders(body):
        names += [f"{place}.{name}" for name, value in (holder.model_extra or {}).items() if value not in (None, [])]
        if isinstance(holder, ImageUrl) and holder.detail in ("low", "high"):
            names.append(f"{place}.detail")
    return list(dict.fromkeys(names))


def _holders(body: ChatCompletionRequest) -> list[tuple[BaseModel, str]]:
    """Every nested object that may have brought unknown fields, with its path."""
    found: list[tuple[BaseModel, str]] = []
    for message in body.messages:
        found.append((message, "messages"))
        for part in message.content or ():
            found.append((part, "messages.content"))
            if part.image_url is not None:
                found.append((part.image_url, "messages.content.image_url"))
    if body.stream_options is not None:
        found.append((body.stream_options, "stream_options"))
    if body.response_format is not None:
        found.append((body.response_format, "response_format"))
        if body.response_format.json_schema is not None:
            found.append((body.response_format.json_schema, "response_format.json_schema"))
    if body.structured_outputs is not None:
        found.append((body.structured_outputs, "structured_outputs"))
    return found
