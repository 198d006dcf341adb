"""Which format a model's answers have."""

from __future__ import annotations

from typing import Final

from engine.worker.answers.formats.plain import PLAIN
from engine.worker.answers.formats.qwen import QWEN
from engine.worker.answers.formats.spec import AnswerFormat
from engine.worker_config import ModelOptions

FORMATS: Final = (PLAIN, QWEN)


def answer_format(options: ModelOptions, prompt: str) -> AnswerFormat:
    """The format that the model's card names. Without one, the format whose thought the rendered prompt opens, because chat
    templates of thinking models may end a prompt inside a thought; plain where none is opened."""
    if options.answer_format is not None:
        return next(known for known in FORMATS if known.name == options.answer_format)
    return next((known for known in FORMATS if known.opens_thought(prompt)), PLAIN)
