"""What a recogniser is to the router."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from duet.wire import Transcript

Samples = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Options:
    """What the caller asked of the recogniser; a backend that cannot honour one is not routed to for it."""

    language: str | None = None
    prompt: str | None = None
    keywords: tuple[str, ...] = ()
    temperature: float = 0.0


class Recogniser(Protocol):
    async def ready(self) -> bool:
        """Whether it could take a request now. Answers at once, from what is known."""
        ...

    async def transcribe(self, samples: Samples, options: Options) -> Transcript:
        """Mono 16 kHz audio of any length. Raises `DuetError`; never half a transcript."""
        ...

    async def close(self) -> None: ...
