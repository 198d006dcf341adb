"""OpenAI's completion request, as clients send it (https://platform.openai.com/docs/api-reference/completions/create)."""

from __future__ import annotations

from typing import Any

from pydantic import Field, StrictBool, StrictInt, field_validator

from engine.api.shared.fields import Refused, as_inputs, ignored
from engine.api.shared.generation import MAX_TOKENS, GenerationFields

MAX_PROMPTS = 64


class CompletionRequest(GenerationFields):
    prompt: Any = Field(description="A string, strings, token ids, or lists of token ids.")
    max_tokens: StrictInt | None = Field(None, ge=0, le=MAX_TOKENS)
    """0: nothing is generated. With `echo` the answer is the prompt; without, the prompt's KV is kept for a later request."""
    echo: StrictBool | None = False
    logprobs: StrictInt | None = Field(None, ge=0, le=5)
    best_of: StrictInt | None = None
    suffix: Refused = None
    add_special_tokens: StrictBool | None = True
    """vLLM's field. True: a text prompt gets the tokens that its tokenizer puts around a text, such as BOS."""

    @field_validator("prompt")
    @classmethod
    def _normalised(cls, value: Any) -> Any:
        # A union of four types would report four complaints about types that the client never meant.
        return as_inputs(value, MAX_PROMPTS, "prompt")

    @field_validator("best_of")
    @classmethod
    def _no_choosing(cls, value: int | None, info: Any) -> int | None:
        if value is not None and value != (info.data.get("n") or 1):
            raise ValueError("is supported only where it equals n: all choices are returned")
        return value

    @field_validator("logprobs")
    @classmethod
    def _none_of_the_prompt(cls, value: int | None, info: Any) -> int | None:
        if value is not None and info.data.get("echo"):
            raise ValueError(
                "with echo needs the log-probabilities of the prompt, which are not computed: send one of them"
            )
        return value


def ignored_fields(body: CompletionRequest) -> list[str]:
    """Names of fields that were sent and have no effect."""
    return ignored(body.holders())
