"""Structures that more than one process exchanges. Times are seconds from the start of the audio."""

from __future__ import annotations

from typing import Annotated

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
    "S1", None before diarization. `channel` is the recording's channel, from 1, where each was recognised for itself.
    `low_confidence` says why this text should not be trusted; None if it can be.
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
    channel: int | None = None


class SpeakerTurn(msgspec.Struct, frozen=True):
    """One speaker's stretch of a recording. `speaker` is a label such as "S1"; `overlap`: another one speaks at the same
    time."""

    start: float
    end: float
    speaker: str
    overlap: bool = False


class ReviewLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of a meeting a model can review at once: segments to correct in one request, segments around them to read,
    glossary terms to choose from, and characters of transcript to summarise. `overview`: its overviews are worth reading."""

    window_segments: Annotated[int, msgspec.Meta(ge=1)] = 20
    context_segments: Annotated[int, msgspec.Meta(ge=0)] = 5
    glossary_terms: Annotated[int, msgspec.Meta(ge=1)] = 60
    summary_characters: Annotated[int, msgspec.Meta(ge=1)] = 24_000
    overview: bool = True


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
