"""Messages between a service and its diarizer child."""

from __future__ import annotations

import msgspec


class Diarize(msgspec.Struct, frozen=True, tag="diarize"):
    """Diarize samples `first`..`last` of a file of 16-bit mono 16 kHz audio. `speakers` None: the number is not known."""

    id: str
    pcm: str
    first: int
    last: int
    speakers: int | None


class LocalTurn(msgspec.Struct, frozen=True):
    """One speaker's stretch, in seconds from the window's start; `speaker` is a number within the window."""

    start: float
    end: float
    speaker: int


class Diarized(msgspec.Struct, frozen=True, tag="diarized"):
    """`voices[k]` is the voice print of the window's speaker k, a unit vector; empty when too little was heard."""

    id: str
    turns: tuple[LocalTurn, ...]
    voices: tuple[tuple[float, ...], ...]


class DiarizeFailed(msgspec.Struct, frozen=True, tag="diarize_failed"):
    id: str
    message: str
