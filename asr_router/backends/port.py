"""What a recogniser is to the router."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from duet.wire import Transcript

Pcm = np.ndarray[Any, np.dtype[np.int16]]
"""Mono 16 kHz. A memory map of a spooled file: hours of audio take no memory until they are looked at."""


@dataclass(frozen=True)
class Options:
    """What the caller asked of the recogniser. What the one that answers cannot honour is reported (`routing.unused`)."""

    language: str | None = None
    prompt: str | None = None
    keywords: tuple[str, ...] = ()
    temperature: float = 0.0


class Recogniser(Protocol):
    async def ready(self) -> bool:
        """Whether it could take a request now. May ask another service, for a moment."""
        ...

    async def transcribe(self, pcm: Pcm, options: Options) -> Transcript:
        """Audio of any length. Raises `DuetError`; never half a transcript."""
        ...

    async def close(self) -> None: ...
