"""Structures that more than one process exchanges. Times are seconds from the start of the audio."""

from __future__ import annotations

import msgspec


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """One word or Han character with its time. `end` is None where a recogniser gives start times only (SenseVoice)."""

    text: str
    start: float
    end: float | None = None


class Segment(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stretch of speech with its text.

    `language` is an ISO 639-1 code (zh, en, yue, ja, ko), `emotion` and `event` are the recogniser's own tags in lower
    case ("neutral", "happy", "speech", "laughter"); None where the recogniser has none. `speaker` is a label such as
    "S1", None before diarization. `low_confidence` says why this text should not be trusted, None if it may be.
    """

    start: float
    end: float
    text: str
    language: str | None = None
    emotion: str | None = None
    event: str | None = None
    speaker: str | None = None
    words: tuple[Word, ...] = ()
    low_confidence: str | None = None


class Usage(msgspec.Struct, frozen=True):
    """Token counts of one request, as in OpenAI's `usage`."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Transcript(msgspec.Struct, frozen=True):
    """What a recogniser heard in one clip. `duration` is the clip's length in seconds; `text` joins the segments."""

    text: str
    duration: float
    language: str | None = None
    segments: tuple[Segment, ...] = ()
    usage: Usage = Usage()
