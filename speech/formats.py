"""Transcripts as text, JSON, SRT and VTT."""

from __future__ import annotations

import datetime
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import srt

from duet.wire import Segment, Transcript
from speech.cues import to_cues
from speech.languages import UNDETERMINED

ResponseFormat = Literal["json", "text", "verbose_json", "srt", "vtt"]
MEDIA_TYPES: dict[ResponseFormat, str] = {
    "json": "application/json",
    "text": "text/plain",
    "verbose_json": "application/json",
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
}
MAX_WARNING_CHARACTERS = 1000


@dataclass(frozen=True)
class Shown:
    """What an answer shows beside the transcript.

    `words`, `segments`: what has times in verbose_json. `language` and `temperature` are the request's, `warnings` are
    sentences for the caller.
    """

    words: bool = False
    segments: bool = True
    language: str | None = None
    temperature: float = 0.0
    warnings: Sequence[str] = ()


def notice_headers(*, truncated: bool, warnings: Sequence[str]) -> dict[str, str]:
    """`X-Duet-Truncated` and `X-Duet-Warning`: what the caller must know of the audio, for formats that have no place for
    it."""
    headers = {"X-Duet-Truncated": "true"} if truncated else {}
    said = "; ".join(warnings).encode("ascii", "replace").decode()
    return headers | ({"X-Duet-Warning": said[:MAX_WARNING_CHARACTERS]} if said else {})


def rendered(transcript: Transcript, response_format: ResponseFormat, shown: Shown | None = None) -> str:
    """The body of an answer to a transcription request."""
    match response_format:
        case "text":
            return transcript.text + "\n"
        case "srt":
            return to_srt(transcript.segments, seconds=transcript.duration)
        case "vtt":
            return to_vtt(transcript.segments, seconds=transcript.duration)
        case "verbose_json":
            return _json(to_verbose_json(transcript, shown or Shown()))
        case "json":
            return _json({"text": transcript.text, "usage": _usage(transcript)})


def _json(body: dict[str, Any]) -> str:
    return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _usage(transcript: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": round(transcript.duration)}


def to_srt(segments: Sequence[Segment], *, seconds: float | None = None, speakers: bool = False) -> str:
    """SubRip. Odd input raises nothing: cues are repaired, and none is lost."""
    cues = [
        srt.Subtitle(i, _delta(cue.start), _delta(cue.end), cue.text)
        for i, cue in enumerate(to_cues(segments, seconds=seconds, speakers=speakers), 1)
    ]
    composed = str(srt.compose(cues, reindex=False))
    # The library silently drops cues that it considers wrong.
    if [cue.content for cue in srt.parse(composed)] != [cue.content for cue in cues]:
        raise AssertionError("a cue was lost in SRT")
    return composed


def to_vtt(segments: Sequence[Segment], *, seconds: float | None = None, speakers: bool = False) -> str:
    """WebVTT (https://www.w3.org/TR/webvtt1/)."""
    blocks = ["WEBVTT"]
    for cue in to_cues(segments, seconds=seconds, speakers=speakers):
        text = cue.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_clock(cue.start)} --> {_clock(cue.end)}\n{text}")
    return "\n\n".join(blocks) + "\n"


def to_verbose_json(transcript: Transcript, shown: Shown) -> dict[str, Any]:
    """OpenAI's verbose_json with every key that its clients read, and never null under one of them. What no recogniser of ours
    measures has a neutral value; see `_verbose_segment`."""
    body: dict[str, Any] = {
        "task": "transcribe",
        "language": transcript.language or shown.language or UNDETERMINED,
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
        "usage": _usage(transcript),
    }
    if shown.segments:
        body["segments"] = [_verbose_segment(i, item, shown.temperature) for i, item in enumerate(transcript.segments)]
    if shown.words:
        body["words"] = [
            {
                "word": word.text,
                "start": round(word.start, 3),
                "end": round(_word_end(segment, i), 3),
                **_channel(segment),
            }
            for segment in transcript.segments
            for i, word in enumerate(segment.words)
        ]
        body["words"].sort(key=lambda word: word["start"])
    if shown.warnings:
        body["warnings"] = list(shown.warnings)
    return body


def _verbose_segment(number: int, segment: Segment, temperature: float) -> dict[str, Any]:
    """OpenAI's keys, then ours. Recognisers give no token ids and no probabilities: `tokens` is empty, and `avg_logprob` and
    `no_speech_prob` are 0, with which no client throws a segment away. `low_confidence` says what is doubtful."""
    return {
        "id": number,
        "seek": round(segment.start * 100),
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": [],
        "temperature": temperature,
        "avg_logprob": 0.0,
        "compression_ratio": compression_ratio(segment.text),
        "no_speech_prob": 0.0,
        "language": segment.language,
        "emotion": segment.emotion,
        "event": segment.event,
        "speaker": segment.speaker,
        "low_confidence": segment.low_confidence,
        **_channel(segment),
    }


def _channel(segment: Segment) -> dict[str, int]:
    return {} if segment.channel is None else {"channel": segment.channel}


def compression_ratio(text: str) -> float:
    """Whisper's measure of text that repeats itself: its bytes for each byte of it compressed."""
    data = text.encode()
    return round(len(data) / len(zlib.compress(data)), 4)


def _word_end(segment: Segment, index: int) -> float:
    """Where a recogniser gives start times only, a word ends where the next begins, and the last one with its segment."""
    word = segment.words[index]
    if word.end is not None:
        return word.end
    following = segment.words[index + 1].start if index + 1 < len(segment.words) else segment.end
    return max(word.start, following)


def _delta(milliseconds: int) -> datetime.timedelta:
    return datetime.timedelta(milliseconds=milliseconds)


def _clock(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{rest:03d}"
