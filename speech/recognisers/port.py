"""What a recogniser is to a service: what it is asked, what it can do, and how it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from duet.wire import Transcript

Pcm = np.ndarray[Any, np.dtype[np.int16]]
"""Mono 16 kHz. A memory map of a spooled file: hours of audio take no memory until they are looked at."""

Field = Literal["keywords", "language", "prompt", "temperature", "timestamp_granularities"]
"""A field of a transcription request that a recogniser honours or has no use for."""


@dataclass(frozen=True)
class Options:
    """What the caller asked of the recogniser. A field that the one that answers does not honour is reported to the caller."""

    language: str | None = None
    prompt: str | None = None
    keywords: tuple[str, ...] = ()
    temperature: float = 0.0


@dataclass(frozen=True)
class Abilities:
    """What a recogniser can do; routes are chosen by this, never by a name.

    `languages`: ISO 639 codes; None: every language that a caller may name. `honours`: the fields that change its answer
    (`timestamp_granularities`: it times words). `max_seconds`: it hears a clip of this length as a whole and cuts a longer
    one, which costs context; None: any length is as good. `remote`: the service that it runs in, as a phrase ("the engine"):
    whether it is ready costs a request, and it may fail on the way. None: it runs in a process of ours.
    """

    languages: frozenset[str] | None
    honours: frozenset[Field]
    max_seconds: float | None = None
    remote: str | None = None

    def hears(self, language: str) -> bool:
        return self.languages is None or language in self.languages


class Recogniser(Protocol):
    """Safe to call concurrently."""

    @property
    def name(self) -> str:
        """What routes, headers and logs call it: a stable name of letters, digits and underscores."""
        ...

    @property
    def abilities(self) -> Abilities: ...

    @property
    def unready(self) -> str:
        """Why it cannot be used while it is not ready, as a clause: "no such model is installed"."""
        ...

    async def ready(self) -> bool:
        """Whether it could take a request now. A remote one asks its service, for a moment."""
        ...

    async def transcribe(self, pcm: Pcm, options: Options) -> Transcript:
        """Audio of any length. Raises `DuetError`; never returns half a transcript."""
        ...

    async def close(self) -> None: ...
