"""How requests become work. A new kind of request is a file here and a line in `Families`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from duet.errors import InvalidRequest
from engine.types import EmbeddingRequest, Event, GenerationRequest, Request, TranscriptionRequest
from engine.worker.families.embedding import start_embedding
from engine.worker.families.text import Prepared, TextFamily
from engine.worker.families.transcription import start_transcription
from engine.worker.model import Loaded
from engine.worker.scheduler.jobs import Job

Result = Event | Prepared
"""What a job ends with: the request's only event, or a sequence as which it goes on."""
Started = Prepared | Job[Result] | None
"""A sequence; or a job; or nothing, while the request waits for its form."""


@dataclass(frozen=True)
class Family:
    """One kind of request: the capability of the model that it needs, and how it is started."""

    capability: str
    start: Callable[[Any], Started]


class Families:
    """The table, for one model."""

    def __init__(self, loaded: Loaded, text: TextFamily) -> None:
        self._loaded = loaded
        self._table: Mapping[type[Request], Family] = {
            GenerationRequest: Family("chat", text.start),
            EmbeddingRequest: Family("embedding", partial(start_embedding, loaded)),
            TranscriptionRequest: Family("asr", partial(start_transcription, loaded)),
        }

    def start(self, request: Request) -> Started:
        """Raises `InvalidRequest` for what this model cannot do, and for what the request's family finds wrong."""
        family = self._table[type(request)]
        if family.capability not in self._loaded.capabilities:
            able = " and ".join(self._loaded.capabilities)
            raise InvalidRequest(f"{request.model} cannot do {family.capability}: it does {able}", param="model")
        return family.start(request)
