"""Models whose answers are nothing but text."""

from __future__ import annotations

from typing import Final

from engine.worker.answers.formats.spec import AnswerFormat

PLAIN: Final = AnswerFormat("plain")
