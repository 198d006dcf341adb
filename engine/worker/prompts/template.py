"""A conversation becomes a prompt by the checkpoint's own chat template. Also the check that needs its number of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from duet.errors import ContextTooLong, InvalidRequest
from engine.types import GenerationRequest, Message
from engine.worker.model import Loaded
from engine.worker.prompts.conversation import Rules, rules_of, shaped

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
    renderer, template = _template_of(loaded)
    images = sum(part.type == "image" for message in request.messages for part in message.parts)
    if images and "vision" not in loaded.capabilities:
        raise InvalidRequest(f"{request.model} cannot see images", param="messages")
    if not template and "vision" not in loaded.capabilities:
        raise InvalidRequest(f"{request.model} has no chat template: it is a base model", param="model")
    if not template or (images and "image" not in template):
        return _render_by_library(loaded, request, images, answer=answer)
    rules = template_rules(renderer, template)
    if rules is None:
        raise InvalidRequest(
            f"the chat template of {request.model} refuses every conversation: the model's folder is broken",
            param="model",
        )
    return _render_within(rules, renderer, request, parts=bool(images) or rules.parts, answer=answer)


def ignored_fields(loaded: Loaded, request: GenerationRequest) -> tuple[str, ...]:
    """Fields of the conversation that the template shows nowhere."""
    if all(message.name is None for message in request.messages):
        return ()
    renderer, template = _template_of(loaded)
    rules = template_rules(renderer, template) if template else None
    return () if rules is not None and rules.names else ("messages.name",)


def _template_of(loaded: Loaded) -> tuple[Any, str]:
    """What renders, and its template; "" if there is none."""
    renderer = loaded.processor if getattr(loaded.processor, "chat_template", None) else loaded.tokenizer
    return renderer, str(getattr(renderer, "chat_template", None) or "")


@lru_cache(maxsize=8)
def template_rules(renderer: Any, template: str) -> Rules | None:
    """The rules of the `template` that `renderer` has. None: it refuses every conversation."""

    def rendered(messages: Sequence[Message], parts: bool) -> str | None:
        try:
            return _apply(renderer, messages, {}, parts=parts, answer=True)
        except Exception:  # noqa: BLE001 - whatever a template raises, it does not take this conversation
            return None

    return rules_of(rendered)


def _render_within(rules: Rules, renderer: Any, request: GenerationRequest, *, parts: bool, answer: bool) -> str:
    """By the template's rules; where it refuses that too, as the strictest template would have it."""
    options, refusals = request.template_options, list[Exception]()
    for allowed in (rules, Rules()):
        try:
            return _apply(renderer, shaped(request.messages, allowed), options, parts=parts, answer=answer)
        except Exception as error:  # noqa: BLE001 - a template is a program: it may raise anything
            refusals.append(error)
    param = "messages"
    if options:
        try:
            _apply(renderer, shaped(request.messages, rules), {}, parts=parts, answer=answer)
            param = "chat_template_kwargs"
        except Exception as error:  # noqa: BLE001 - it refuses the conversation itself, as it said above
            refusals.append(error)
    cause = " ".join((str(refusals[0]) or type(refusals[0]).__name__).split())[:300]
    raise InvalidRequest(f"the chat template of {request.model} refused: {cause}", param=param) from refusals[0]


def _apply(renderer: Any, messages: Sequence[Message], options: dict[str, Any], *, parts: bool, answer: bool) -> str:
    given = [_as_template_message(message, parts=parts) for message in messages]
    return str(renderer.apply_chat_template(given, **{**options, "tokenize": False, "add_generation_prompt": answer}))


def _render_by_library(loaded: Loaded, request: GenerationRequest, images: int, *, answer: bool) -> str:
    """For OCR models and others whose template is missing or has no image parts: mlx-vlm has a format for each."""
    from mlx_vlm.prompt_utils import apply_chat_template

    messages = [_as_template_message(message, parts=False) for message in request.messages]
    options = {**request.template_options, "add_generation_prompt": answer}
    try:
        return str(apply_chat_template(loaded.processor, loaded.config, messages, num_images=images, **options))
    except Exception as error:
        raise InvalidRequest(f"the chat format of {request.model} refused: {error}", param="messages") from error


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


def context_of(loaded: Loaded) -> int:
    """The longest prompt and answer together, in tokens."""
    return loaded.context or DEFAULT_CONTEXT_TOKENS


def answer_budget(prompt_tokens: int, max_tokens: int | None, context: int | None, *, param: str = "messages") -> int:
    """How many tokens the answer may have: `max_tokens`, or what the context has left if that is less. Raises `ContextTooLong`,
    with the numbers, if the prompt leaves nothing."""
    limit = context or DEFAULT_CONTEXT_TOKENS
    if prompt_tokens >= limit:
        raise ContextTooLong(
            f"the prompt has {prompt_tokens} tokens; this model's context is {limit}, the answer included",
            param=param,
        )
    return limit - prompt_tokens if max_tokens is None else min(max_tokens, limit - prompt_tokens)
