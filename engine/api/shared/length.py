"""Prompts that cannot fit are refused before anything is made of them. The worker looks closer."""

from __future__ import annotations

from collections.abc import Sequence

from duet.errors import ContextTooLong
from engine.types import ModelInfo

MAX_TOKEN_CHARACTERS = 1024
"""No vocabulary has a longer token; the longest of those in use are some hundred blanks."""


def check_length(prompt: str | Sequence[int], model: ModelInfo, param: str, *, place: str = "the prompt") -> None:
    """Raises `ContextTooLong` for a text that is too long however it is tokenised, and for too many token ids. `place` names the
    prompt in the message. Until a model was loaded its context may be unknown."""
    if model.context is None:
        return
    if isinstance(prompt, str):
        least = -(-len(prompt) // MAX_TOKEN_CHARACTERS)
        said = f"{len(prompt):,} characters, which are {least} tokens or more"
    else:
        least, said = len(prompt), f"{len(prompt)} tokens"
    if least > model.context:
        raise ContextTooLong(f"{place} has {said}; this model's context is {model.context}", param=param)
