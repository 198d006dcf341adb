"""A conversation becomes a prompt by the checkpoint's own chat template. Also the check that needs its number of tokens."""

from __future__ import annotations

from typing import Any

import msgspec
from jinja2 import TemplateError

from duet.errors import ContextTooLong, InvalidRequest
from engine.types import GenerationRequest, Message
from engine.worker.model import Loaded

DEFAULT_CONTEXT_TOKENS = 32_768
"""The limit of the rare checkpoint that names none."""


def render(
    loaded: Loaded, request: GenerationRequest, *, messages: tuple[Message, ...] | None = None, answer: bool = True
) -> str:
    """The prompt's text, ending where the assistant's answer begins. Raises `InvalidRequest`.

    `messages` replaces those of the request. Without `answer` the text ends with the last message.
    """
    if messages is not None:
        request = msgspec.structs.replace(request, messages=messages)
    renderer = loaded.processor if getattr(loaded.processor, "chat_template", None) else loaded.tokenizer
    template = getattr(renderer, "chat_template", None)
    images = sum(part.type == "image" for message in request.messages for part in message.parts)
    if images and "vision" not in loaded.capabilities:
        raise InvalidRequest(f"{request.model} cannot see images", param="messages")
    if not template and "vision" not in loaded.capabilities:
        raise InvalidRequest(f"{request.model} has no chat template: it is a base model", param="model")
    try:
        if not template or (images and "image" not in str(template)):
            return _render_by_library(loaded, request, images, answer=answer)
        text = _apply(renderer, request, parts=bool(images), answer=answer)
        if images or _shows_last_message(text, request):
            return text
        # Templates of vision models may accept content only as a list of parts. Of a plain string they render nothing.
        in_parts = _apply(renderer, request, parts=True, answer=answer)
        return in_parts if _shows_last_message(in_parts, request) else text
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        raise InvalidRequest(f"the chat template of {request.model} refused: {error}", param="messages") from error


def _apply(renderer: Any, request: GenerationRequest, *, parts: bool, answer: bool) -> str:
    messages = [_as_template_message(message, parts=parts) for message in request.messages]
    options = {**request.template_options, "tokenize": False, "add_generation_prompt": answer}
    return str(renderer.apply_chat_template(messages, **options))


def _shows_last_message(text: str, request: GenerationRequest) -> bool:
    return "".join(part.text for part in request.messages[-1].parts).strip() in text


def _render_by_library(loaded: Loaded, request: GenerationRequest, images: int, *, answer: bool) -> str:
    """For OCR models and others whose template is missing or has no image parts: mlx-vlm has a format for each."""
    from mlx_vlm.prompt_utils import apply_chat_template

    messages = [_as_template_message(message, parts=False) for message in request.messages]
    options = {**request.template_options, "add_generation_prompt": answer}
    return str(apply_chat_template(loaded.processor, loaded.config, messages, num_images=images, **options))


def _as_template_message(message: Message, *, parts: bool) -> dict[str, Any]:
    rendered: dict[str, Any] = {"role": message.role}
    if message.name is not None:
        rendered["name"] = message.name
    if parts:
        content: Any = [
            {"type": "image"} if part.type == "image" else {"type": "text", "text": part.text} for part in message.parts
        ]
    else:
        content = "".join(part.text for part in message.parts)
    return {**rendered, "content": content}


def answer_budget(prompt_tokens: int, max_tokens: int | None, context: int | None, *, param: str = "messages") -> int:
    """How many tokens the answer may have. Raises `ContextTooLong`, with the numbers, if prompt and answer do not fit."""
    limit = context or DEFAULT_CONTEXT_TOKENS
    if prompt_tokens >= limit:
        raise ContextTooLong(
            f"the prompt has {prompt_tokens} tokens; this model's context is {limit}, the answer included",
            param=param,
        )
    if max_tokens is not None and prompt_tokens + max_tokens > limit:
        raise ContextTooLong(
            f"the prompt's {prompt_tokens} tokens and max_tokens {max_tokens} exceed this model's context of {limit}",
            param="max_tokens",
        )
    return limit - prompt_tokens if max_tokens is None else max_tokens
