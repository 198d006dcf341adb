"""Which format a model's answers have."""

from __future__ import annotations

from typing import Final

from engine.worker.answers.formats.plain import PLAIN
from engine.worker.answers.formats.qwen import QWEN
from engine.worker.answers.formats.spec import AnswerFormat

FORMATS: Final = (PLAIN, QWEN)


def derive(prompt: str) -> AnswerFormat:
    """The format whose thought the rendered prompt opens; plain if there is none. Chat templates of thinking models may end
    the prompt inside a thought."""
    return next((known for known in FORMATS if known.opens_thought(prompt)), PLAIN)
