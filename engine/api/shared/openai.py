"""What OpenAI's text dialects write in the same way: token counts, the end of an answer, log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from duet.wire import Usage
from engine.types import FinishReason


def usage(parts: Mapping[int, Usage], n: int) -> dict[str, Any]:
    """OpenAI's `usage` of choices by index. A prompt counts once for its `n` choices in a row."""
    prompts: dict[int, Usage] = {}
    for index, part in parts.items():
        known = prompts.get(index // n, part)
        prompts[index // n] = Usage(
            max(known.prompt_tokens, part.prompt_tokens), 0, max(known.cached_tokens, part.cached_tokens)
        )
    prompt = sum(part.prompt_tokens for part in prompts.values())
    completion = sum(part.completion_tokens for part in parts.values())
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(part.cached_tokens for part in prompts.values())},
    }


def usage_frame(stem: bytes, parts: Mapping[int, Usage], n: int) -> bytes:
    """The frame of a stream that tells the `usage` and has no choices. `stem` is what all its frames begin with."""
    return stem + b',"choices":[],"usage":' + msgspec.json.encode(usage(parts, n)) + b"}\n\n"


def ended(reason: FinishReason | None, repetition: bool) -> dict[str, str | None]:
    """`finish_reason`, and vLLM's `stop_reason` beside it where that says too little."""
    return {"finish_reason": reason} | ({"stop_reason": "repetition"} if repetition else {})


def finite(logprob: float) -> float:
    """JSON has no infinity: OpenAI writes -9999 for a token that cannot come."""
    return max(logprob, -9999.0)
