"""OpenAI's chat body becomes requests."""

from __future__ import annotations

import msgspec

from duet.errors import InvalidRequest
from engine.api.dialects.chat.schema import ChatCompletionRequest
from engine.api.shared.caller import Caller
from engine.api.shared.generation import base_request, choices
from engine.api.shared.length import check_length
from engine.api.shared.pictures import Pictures
from engine.types import GenerationRequest, Message, ModelInfo, Part, TemplateOptions

MAX_TEMPLATE_OPTION_BYTES = 1 << 20
_RESERVED_OPTIONS = frozenset({"messages", "tokenize", "add_generation_prompt", "chat_template", "conversation"})


async def to_requests(
    body: ChatCompletionRequest, model: ModelInfo, caller: Caller, pictures: Pictures
) -> list[GenerationRequest]:
    """One request a choice. Fetches images. Raises `InvalidRequest`."""
    check_length(
        "".join(part.text or "" for message in body.messages for part in message.content or ()), model, "messages"
    )
    messages = with_ocr_prompt(await _messages(body, caller, pictures), model.ocr_prompt)
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise InvalidRequest("max_tokens and max_completion_tokens differ", param="max_completion_tokens")
    base = base_request(body, model, caller, logprobs=(body.top_logprobs or 0) if body.logprobs else None)
    prompt = msgspec.structs.replace(
        base,
        messages=messages,
        max_tokens=base.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        template_options=_template_options(body),
    )
    return choices([prompt], body.n or 1)


def _template_options(body: ChatCompletionRequest) -> TemplateOptions:
    options = dict(body.chat_template_kwargs or {})
    if reserved := _RESERVED_OPTIONS & set(options):
        raise InvalidRequest(f"{', '.join(sorted(reserved))} cannot be set", param="chat_template_kwargs")
    try:
        size = len(msgspec.msgpack.encode(options))
    except (OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidRequest(f"cannot be passed on: {error}", param="chat_template_kwargs") from error
    if size > MAX_TEMPLATE_OPTION_BYTES:
        raise InvalidRequest(
            f"chat_template_kwargs has {size:,} bytes; a request takes {MAX_TEMPLATE_OPTION_BYTES:,}",
            param="chat_template_kwargs",
        )
    if body.enable_thinking is not None:
        options["enable_thinking"] = body.enable_thinking
    return options


async def _messages(body: ChatCompletionRequest, caller: Caller, pictures: Pictures) -> tuple[Message, ...]:
    asked = [
        (part.image_url.url, f"messages[{i}].content[{j}].image_url.url")
        for i, message in enumerate(body.messages)
        for j, part in enumerate(message.content or ())
        if part.type == "image_url" and part.image_url is not None
    ]
    images = iter(await pictures.parts(asked, caller.deadline))
    return tuple(
        Message(
            message.role,
            tuple(
                next(images) if part.type == "image_url" else Part("text", text=part.text or "")
                for part in message.content or ()
            ),
            message.name,
        )
        for message in body.messages
    )


def with_ocr_prompt(messages: tuple[Message, ...], prompt: str | None) -> tuple[Message, ...]:
    """A picture that comes without words gets the words that the OCR model was trained with."""
    last = messages[-1]
    wordless = last.role == "user" and not any(part.type == "text" and part.text.strip() for part in last.parts)
    if prompt is None or not wordless:
        return messages
    return (*messages[:-1], msgspec.structs.replace(last, parts=(*last.parts, Part("text", text=prompt))))
