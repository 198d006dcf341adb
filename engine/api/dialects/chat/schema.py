"""OpenAI's chat request, as clients send it (https://platform.openai.com/docs/api-reference/chat/create)."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictInt, StrictStr, field_validator, model_validator

from engine.api.shared.fields import Lenient, Refused, Text, bounded, ignored
from engine.api.shared.generation import MAX_TOKENS, GenerationFields

MAX_MESSAGES = 10_000
MAX_PARTS = 10_000
"""Of all messages together."""
MAX_NAME_CHARACTERS = 256
MAX_TEMPLATE_OPTION_DEPTH = 32


class ImageUrl(Lenient):
    url: StrictStr
    detail: Literal["auto", "low", "high"] | None = None


def _image_object(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value  # some clients send the bare address


class ContentPart(Lenient):
    """One piece of a message. The field that `type` names is set."""

    type: Literal["text", "image_url"]
    text: Text | None = None
    image_url: Annotated[ImageUrl | None, BeforeValidator(_image_object)] = None

    @model_validator(mode="before")
    @classmethod
    def _refusal_is_text(cls, given: Any) -> Any:
        """An assistant's refusal, as clients repeat it in a conversation, is what it said."""
        if isinstance(given, dict) and given.get("type") == "refusal":
            return {"type": "text", "text": given.get("refusal")}
        return given

    @field_validator("type", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value in ("input_audio", "file", "video_url"):
            raise ValueError(f"{value} parts are not supported yet")
        return value

    @model_validator(mode="after")
    def _has_its_field(self) -> ContentPart:
        if (self.text if self.type == "text" else self.image_url) is None:
            raise ValueError(f"a {self.type} part needs {self.type}")
        return self


def _parts(value: Any) -> Any:
    """A string is one text part, null is no part."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    return [] if value is None else value


class ChatMessage(Lenient):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[list[ContentPart] | None, BeforeValidator(_parts)] = None
    name: Text | None = Field(None, max_length=MAX_NAME_CHARACTERS)

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
        if not self.content and self.role not in ("assistant", "system"):
            raise ValueError(f"a {self.role} message needs content")
        return self


def _few_messages(value: Any) -> Any:
    """Counted before the messages are looked at."""
    if isinstance(value, list):
        if len(value) > MAX_MESSAGES:
            raise ValueError(f"{len(value)} messages; a request takes {MAX_MESSAGES}")
        contents = [message.get("content") for message in value if isinstance(message, dict)]
        if (parts := sum(len(content) for content in contents if isinstance(content, list))) > MAX_PARTS:
            raise ValueError(f"{parts} parts of content; a request takes {MAX_PARTS}")
    return value


class ChatCompletionRequest(GenerationFields):
    messages: Annotated[list[ChatMessage], BeforeValidator(_few_messages)] = Field(min_length=1)
    max_completion_tokens: StrictInt | None = Field(None, ge=1, le=MAX_TOKENS)
    logprobs: StrictBool | None = False
    top_logprobs: StrictInt | None = Field(None, ge=0, le=20)
    enable_thinking: StrictBool | None = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, BeforeValidator(partial(bounded, depth=MAX_TEMPLATE_OPTION_DEPTH))
    ] = None
    # Known, and refused until they can be done.
    tools: Refused = None
    tool_choice: Annotated[Any, Field(description="Not supported yet, but for none and auto.")] = None
    functions: Refused = None
    function_call: Annotated[Any, Field(description="Not supported yet, but for none and auto.")] = None
    modalities: list[str] | None = None
    audio: Refused = None
    prediction: Refused = None
    web_search_options: Refused = None

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
        if value not in (None, [], ["text"]):
            raise ValueError("only ['text'] is supported")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: Any) -> int | None:
        if value and not info.data.get("logprobs"):
            raise ValueError("needs logprobs: true")
        return value


def ignored_fields(body: ChatCompletionRequest) -> list[str]:
    """Names of fields that were sent and have no effect."""
    holders, details = body.holders(), []
    for message in body.messages:
        holders.append((message, "messages"))
        for part in message.content or ():
            holders.append((part, "messages.content"))
            if part.image_url is not None:
                holders.append((part.image_url, "messages.content.image_url"))
                if part.image_url.detail in ("low", "high"):
                    details.append("messages.content.image_url.detail")
    return list(dict.fromkeys([*ignored(holders), *details]))
