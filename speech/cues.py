"""Segments as subtitles that a person can read.

Rules for cues: whole milliseconds, in order, no overlap, none after the end of the recording; at most 7 s, and 0.7 s or longer
where there is time; at most two lines of 16 Han characters or 42 others; cut at punctuation where there is any.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

from duet.wire import Segment
from speech import lines

MIN_CUE_MS, MAX_CUE_MS = 700, 7000
SHORTEST_CUE_MS = 300
"""What a cue gets at the least when the next one is due: the text of what is being said goes first."""
MAX_LINES = 2


@dataclass(frozen=True)
class Cue:
    """One subtitle, times in milliseconds."""

    start: int
    end: int
    text: str


def to_cues(segments: Sequence[Segment], *, seconds: float | None = None, speakers: bool = False) -> list[Cue]:
    """Cues of all segments in which something is said, in order. The cues of a segment hold all of its text, and begin with its
    channel or speaker. `seconds`: where the recording ends."""
    end = None if seconds is None else max(1, int(seconds * 1000))
    spoken = sorted((item for item in segments if lines.has_words(item.text)), key=lambda item: (item.start, item.end))
    starts = [_milliseconds(item.start, end) for item in spoken]
    cues: list[Cue] = []
    for i, segment in enumerate(spoken):
        label = _label(segment, speakers=speakers)
        texts = _texts(label, _one_line(segment.text), _milliseconds(segment.end, end) - starts[i])
        start = max(starts[i], cues[-1].end if cues else 0)
        last = max(_milliseconds(segment.end, end), start + MIN_CUE_MS * len(texts))
        if i + 1 < len(spoken):
            last = min(last, starts[i + 1])
        cues += _timed(label, texts, start, max(last, start + SHORTEST_CUE_MS, start + len(texts)))
    return cues if end is None else _within(cues, end)


def _label(segment: Segment, *, speakers: bool) -> str:
    """Who speaks, before each cue's text."""
    if segment.channel is not None:
        return f"Channel {segment.channel}: "
    return f"{_one_line(segment.speaker)}: " if speakers and segment.speaker else ""


def _texts(label: str, text: str, duration: int) -> list[str]:
    """One segment's text in as many pieces as its width and its duration need."""
    room = max(1.0, MAX_LINES * lines.MAX_LINE_WIDTH - lines.width(label))
    width = lines.width(text)
    if width > room:  # no last cue of one word
        room = min(room, 1.2 * width / math.ceil(width / room))
    texts = [part for piece in lines.pieces(text, room) for part in _in_two_lines(label, piece)]
    while len(texts) < -(-duration // MAX_CUE_MS):
        breakable = [i for i, piece in enumerate(texts) if lines.is_breakable(piece)]
        if not breakable:
            break
        widest = max(breakable, key=lambda i: lines.width(texts[i]))
        texts[widest : widest + 1] = lines.halves(texts[widest])
    return texts


def _in_two_lines(label: str, piece: str) -> list[str]:
    """The piece, halved until each part fits two lines: words that break unevenly could need a third."""
    if len(lines.pieces(label + piece, lines.MAX_LINE_WIDTH)) <= MAX_LINES:
        return [piece]
    parts = lines.halves(piece)
    return parts if len(parts) == 1 else [smaller for part in parts for smaller in _in_two_lines(label, part)]


def _timed(label: str, texts: Sequence[str], start: int, end: int) -> list[Cue]:
    """Cues from `start` to `end`, each as long as its share of the text, and at least a millisecond."""
    widths = [lines.width(text) for text in texts]
    total, spare = sum(widths), end - start - len(texts)
    cues, done = [], 0.0
    for i, (text, width) in enumerate(zip(texts, widths, strict=True)):
        first = start + i + round(spare * done / total)
        done += width
        last = start + i + 1 + round(spare * done / total)
        shown = "\n".join(lines.wrapped(label + text))
        cues.append(Cue(first, min(last, first + MAX_CUE_MS), shown))
    return cues


def _within(cues: list[Cue], end: int) -> list[Cue]:
    """The cues moved to earlier times as far as the end of the recording needs, and no further."""
    while len(cues) > end:  # more cues than milliseconds
        cues = [*cues[:-2], replace(cues[-2], text=f"{cues[-2].text}\n{cues[-1].text}")]
    shortest = min(SHORTEST_CUE_MS, end // max(1, len(cues)))
    limit, moved = end, []
    for cue in reversed(cues):
        last = min(cue.end, limit)
        limit = min(cue.start, last - min(shortest, cue.end - cue.start))
        moved.append(Cue(limit, last, cue.text))
    return moved[::-1]


def _milliseconds(seconds: float, end: int | None) -> int:
    at = max(0, round(seconds * 1000))
    return at if end is None else min(at, end)


def _one_line(text: str) -> str:
    """Without line breaks, control characters, and the arrow that both formats read as a time line."""
    spaced = re.sub(r"\s+", " ", text).replace("-->", "→")
    return "".join(char for char in spaced if unicodedata.category(char) not in ("Cc", "Cs")).strip()
