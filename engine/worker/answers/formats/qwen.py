"""Qwen's thinking models. Many other families write their thoughts between the same marks."""

from __future__ import annotations

from typing import Final

from engine.worker.answers.formats.spec import AnswerFormat, Marks

QWEN: Final = AnswerFormat("qwen", thought=Marks("<think>", "</think>"))
