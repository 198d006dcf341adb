"""A request that is no sequence of tokens: it runs in steps beside the decoding batch."""

from __future__ import annotations

from typing import Protocol

from engine.types import EmbeddingResult, Priority, TranscriptionResult


class Job(Protocol):
    """One embedding or transcription request. A step should take well under a second, so that streams do not stall."""

    id: str
    priority: Priority

    def step(self) -> EmbeddingResult | TranscriptionResult | None:
        """Do a piece of work; the result when that was the last. Raises `DuetError` for this request alone."""
        ...
