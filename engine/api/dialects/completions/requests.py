"""OpenAI's completion body becomes requests."""

from __future__ import annotations

import msgspec

from engine.api.dialects.completions.schema import CompletionRequest
from engine.api.shared.caller import Caller
from engine.api.shared.generation import base_request, choices
from engine.api.shared.length import check_length
from engine.types import GenerationRequest, ModelInfo

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default (https://platform.openai.com/docs/api-reference/completions/create): a raw prompt often has no natural end."""


def to_requests(body: CompletionRequest, model: ModelInfo, caller: Caller) -> list[GenerationRequest]:
    """`n` requests for each prompt, in the order of OpenAI's indexes. Raises `InvalidRequest`."""
    for i, prompt in enumerate(body.prompt):
        check_length(prompt, model, "prompt", place=f"prompt {i}")
    base = msgspec.structs.replace(
        base_request(body, model, caller, logprobs=body.logprobs),
        max_tokens=_max_tokens(body, model),
        echo=bool(body.echo),
        add_special_tokens=body.add_special_tokens is not False,
    )
    return choices([msgspec.structs.replace(base, prompt=prompt) for prompt in body.prompt], body.n or 1)


def _max_tokens(body: CompletionRequest, model: ModelInfo) -> int:
    given = model.max_tokens if body.max_tokens is None else body.max_tokens
    return DEFAULT_MAX_TOKENS if given is None else given
