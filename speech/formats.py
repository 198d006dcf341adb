"""Transcripts as text, JSON, SRT and VTT, with cues that a person can read.

Rules for cues: whole milliseconds, in order, no overlap; 0.7 s to 7 s; at most two lines of 16 Han characters or 42 others;
cut at punctuation where there is any.
"""

from __future__ import annotations

import datetime
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import srt

from duet.wire import Segment, Transcript
from speech.text import is_wide

ResponseFormat = Literal["json", "text", "verbose_json", "srt", "vtt"]
MEDIA_TYPES: dict[ResponseFormat, str] = {
    "json": "application/json",
    "text": "text/plain",
    "verbose_json": "application/json",
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
}
MIN_CUE_MS, MAX_CUE_MS = 700, 7000
MAX_LINE_WIDTH = 42.0
MAX_LINES = 2
_HAN_WIDTH = MAX_LINE_WIDTH / 16
_BREAK_AFTER = "，。！？；、,.!?;:…"


@dataclass(frozen=True)
class Cue:
    """One subtitle, times in milliseconds."""

    start: int
    end: int
    text: str


MAX_WARNING_CHARACTERS = 1000


def notice_headers(*, truncated: bool, warnings: Sequence[str]) -> dict[str, str]:
    """`X-Duet-Truncated` and `X-Duet-Warning`: what the caller must know of the audio, for formats that have no place for
    it."""
    headers = {"X-Duet-Truncated": "true"} if truncated else {}
    said = "; ".join(warnings).encode("ascii", "replace").decode()
    return headers | ({"X-Duet-Warning": said[:MAX_WARNING_CHARACTERS]} if said else {})


def rendered(
    transcript: Transcript,
    response_format: ResponseFormat,
    *,
    words: bool = False,
    segments: bool = True,
    warnings: Sequence[str] = (),
) -> str:
    """The body of an answer to a transcription request. `words`, `segments`: what has times in verbose_json. `warnings`
    stand there too."""
    match response_format:
        case "text":
            return transcript.text + "\n"
        case "srt":
            return to_srt(transcript.segments)
        case "vtt":
            return to_vtt(transcript.segments)
        case "verbose_json":
            shown = to_verbose_json(transcript, words=words, segments=segments)
            return _json(shown | ({"warnings": list(warnings)} if warnings else {}))
        case "json":
            usage = {"type": "duration", "seconds": round(transcript.duration)}
            return _json({"text": transcript.text, "usage": usage})


def _json(shown: dict[str, Any]) -> str:
    return json.dumps(shown, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def to_srt(segments: Sequence[Segment], *, speakers: bool = False) -> str:
    """SubRip. Odd input raises nothing: cues are repaired, and none is lost."""
    cues = [
        srt.Subtitle(i, _delta(cue.start), _delta(cue.end), cue.text)
        for i, cue in enumerate(to_cues(segments, speakers=speakers), 1)
    ]
    composed = str(srt.compose(cues, reindex=False))
    # The library silently drops cues that it considers wrong.
    if [cue.content for cue in srt.parse(composed)] != [cue.content for cue in cues]:
        raise AssertionError("a cue was lost in SRT")
    return composed


def to_vtt(segments: Sequence[Segment], *, speakers: bool = False) -> str:
    """WebVTT (https://www.w3.org/TR/webvtt1/)."""
    blocks = ["WEBVTT"]
    for cue in to_cues(segments, speakers=speakers):
        text = cue.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_clock(cue.start)} --> {_clock(cue.end)}\n{text}")
    return "\n\n".join(blocks) + "\n"


def to_verbose_json(transcript: Transcript, *, words: bool = False, segments: bool = True) -> dict[str, Any]:
    """OpenAI's verbose_json. What the recogniser does not give is null or left out (log-probabilities), never invented."""
    shown: dict[str, Any] = {
        "task": "transcribe",
        "language": transcript.language,
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
    }
    if segments:
        shown["segments"] = [_verbose_segment(i, segment) for i, segment in enumerate(transcript.segments)]
    if words:
        shown["words"] = [
            {"word": word.text, "start": round(word.start, 3), "end": round(_word_end(segment, i), 3)}
            for segment in transcript.segments
            for i, word in enumerate(segment.words)
        ]
    return shown


def _verbose_segment(number: int, segment: Segment) -> dict[str, Any]:
    return {
        "id": number,
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "language": segment.language,
        "emotion": segment.emotion,
        "event": segment.event,
        "speaker": segment.speaker,
        "low_confidence": segment.low_confidence,
    }


def _word_end(segment: Segment, index: int) -> float:
    """Where a recogniser gives start times only, a word ends where the next begins, and the last one with its segment."""
    word = segment.words[index]
    if word.end is not None:
        return word.end
    following = segment.words[index + 1].start if index + 1 < len(segment.words) else segment.end
    return max(word.start, following)


# Cues -------------------------------------------------------------------------------------------------------------


def to_cues(segments: Sequence[Segment], *, speakers: bool = False) -> list[Cue]:
    """Cues of all segments with text, in order. The cues of a segment hold all of its text."""
    cues: list[Cue] = []
    for segment in sorted(segments, key=lambda item: (item.start, item.end)):
        label = f"{segment.speaker}: " if speakers and segment.speaker else ""
        text = _one_line(segment.text)
        if not text:
            continue
        start, end = round(segment.start * 1000), round(segment.end * 1000)
        cues += _cut(label, text, start, max(end, start + MIN_CUE_MS))
    return _in_order(cues)


def _cut(label: str, text: str, start: int, end: int) -> list[Cue]:
    """One segment's cues: as many as its text and its length need, each as long as its share of the text."""
    pieces = _pieces(text, max(1.0, MAX_LINES * MAX_LINE_WIDTH - _width(label)))
    pieces = [part for piece in pieces for part in _in_two_lines(label, piece)]
    while len(pieces) < -(-(end - start) // MAX_CUE_MS) and any(_breakable(piece) for piece in pieces):
        widest = max((i for i, piece in enumerate(pieces) if _breakable(piece)), key=lambda i: _width(pieces[i]))
        pieces[widest : widest + 1] = _halves(pieces[widest])
    total = sum(_width(piece) for piece in pieces)
    cues, done = [], 0.0
    for piece in pieces:
        first = start + round((end - start) * done / total)
        done += _width(piece)
        last = start + round((end - start) * done / total)
        cues.append(Cue(first, min(last, first + MAX_CUE_MS), _wrapped(label + piece)))
    return cues


def _in_order(cues: list[Cue]) -> list[Cue]:
    """Cues without overlap, none shorter than the minimum. A later cue gives way to an earlier one."""
    ordered: list[Cue] = []
    for cue in cues:
        previous = ordered[-1] if ordered else None
        start = cue.start
        if previous is not None and start < previous.end:
            # The earlier cue ends sooner if that leaves it long enough; otherwise this one starts later.
            if start >= previous.start + MIN_CUE_MS:
                ordered[-1] = Cue(previous.start, start, previous.text)
            else:
                start = previous.start + MIN_CUE_MS
                ordered[-1] = Cue(previous.start, start, previous.text)
        ordered.append(Cue(start, max(cue.end, start + MIN_CUE_MS), cue.text))
    return ordered


def _pieces(text: str, width: float) -> list[str]:
    """Text in pieces no wider than `width`, cut after punctuation if possible, otherwise between words or characters."""
    pieces: list[str] = []
    while _width(text) > width:
        at = _cut_position(text, width)
        pieces.append(text[:at].rstrip())
        text = text[at:].lstrip()
    return [*pieces, text] if text else pieces


def _in_two_lines(label: str, piece: str) -> list[str]:
    """The piece, halved until each part fits two lines: words that break unevenly could need a third."""
    if len(piece) == 1 or len(_pieces(label + piece, MAX_LINE_WIDTH)) <= MAX_LINES:
        return [piece]
    return [part for half in _halves(piece) for part in _in_two_lines(label, half)]


def _breakable(text: str) -> bool:
    """Whether it can be cut without cutting a word."""
    return any(char == " " or is_wide(char) for char in text[1:])


def _halves(text: str) -> list[str]:
    at = _cut_position(text, _width(text) * 0.6)
    parts = [text[:at].rstrip(), text[at:].lstrip()]
    return [part for part in parts if part]


def _cut_position(text: str, width: float) -> int:
    """Where to cut `text`, which is wider than `width`: 1 to len(text) - 1."""
    fits, used = 0, 0.0
    while fits < len(text) - 1 and used + _width(text[fits]) <= width:
        used += _width(text[fits])
        fits += 1
    fits = max(fits, 1)
    for i in range(fits, fits // 2, -1):
        if text[i - 1] in _BREAK_AFTER:
            return i
    for i in range(fits, 0, -1):
        if text[i - 1] == " " or text[i] == " " or is_wide(text[i - 1]) or is_wide(text[i]):
            return i
    return fits


def _wrapped(text: str) -> str:
    return "\n".join(_pieces(text, MAX_LINE_WIDTH))


def _width(text: str) -> float:
    return sum(_HAN_WIDTH if unicodedata.east_asian_width(char) in "WF" else 1.0 for char in text)


def _one_line(text: str) -> str:
    """Without line breaks, control characters, and the arrow that both formats read as a time line."""
    spaced = re.sub(r"\s+", " ", text).replace("-->", "→")
    return "".join(char for char in spaced if unicodedata.category(char) != "Cc").strip()


def _delta(milliseconds: int) -> datetime.timedelta:
    return datetime.timedelta(milliseconds=milliseconds)


def _clock(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{rest:03d}"
