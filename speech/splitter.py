"""Where to cut audio: spans of speech become segments, and long spans are cut where they are quietest.

All times are seconds; samples are mono at 16 kHz, float32 in [-1, 1] or int16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SAMPLE_RATE = 16_000
FRAME_SECONDS = 0.03

Samples = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Span:
    """A stretch of audio, `start` < `end`."""

    start: float
    end: float

    @property
    def duration(self) -> float:
        return self.end - self.start


def split(
    samples: Samples,
    spans: Sequence[Span],
    *,
    max_seconds: float = 28.0,
    merge_gap_seconds: float = 0.6,
    pad_seconds: float = 0.15,
) -> list[Span]:
    """Segments that cover every span of one speaker: near spans are merged, long ones cut, all padded.

    `spans` are in order and do not overlap. The segments do not overlap either, and none is longer than `max_seconds` plus
    padding.
    """
    pieces: list[Span] = []
    for span in _merged(spans, max_seconds=max_seconds, gap_seconds=merge_gap_seconds):
        pieces += cut(samples, span, max_seconds=max_seconds)
    return _padded(pieces, pad_seconds, total_seconds=len(samples) / SAMPLE_RATE)


def cut(samples: Samples, span: Span, *, max_seconds: float) -> list[Span]:
    """`span` in pieces of at most `max_seconds`, each cut where the audio is quietest in the piece's last third."""
    pieces, start = [], span.start
    while span.end - start > max_seconds:
        # At most two thirds of the rest, so that no sliver is left at the end.
        latest = start + min(max_seconds, (span.end - start) * 2 / 3)
        at = _quietest(samples, start + (latest - start) * 2 / 3, latest)
        pieces.append(Span(start, at))
        start = at
    pieces.append(Span(start, span.end))
    return pieces


def _quietest(samples: Samples, start: float, end: float) -> float:
    """The middle of the quietest frame between two times."""
    frame = int(FRAME_SECONDS * SAMPLE_RATE)
    first = int(start * SAMPLE_RATE)
    window = np.asarray(samples[first : int(end * SAMPLE_RATE)], dtype=np.float64)
    count = len(window) // frame
    if count == 0:
        return end
    energy = np.square(window[: count * frame].reshape(count, frame)).mean(axis=1)
    return (first + (int(energy.argmin()) + 0.5) * frame) / SAMPLE_RATE


def _merged(spans: Sequence[Span], *, max_seconds: float, gap_seconds: float) -> list[Span]:
    merged: list[Span] = []
    for span in spans:
        last = merged[-1] if merged else None
        if last and span.start - last.end < gap_seconds and span.end - last.start <= max_seconds:
            merged[-1] = Span(last.start, span.end)
        else:
            merged.append(span)
    return merged


def _padded(pieces: Sequence[Span], pad_seconds: float, *, total_seconds: float) -> list[Span]:
    """Pads each piece by at most half of the gap to its neighbour."""
    padded = []
    for i, piece in enumerate(pieces):
        before = piece.start - (pieces[i - 1].end if i else 0.0)
        after = (pieces[i + 1].start if i + 1 < len(pieces) else total_seconds) - piece.end
        left = min(pad_seconds, before if i == 0 else before / 2)
        right = min(pad_seconds, after if i + 1 == len(pieces) else after / 2)
        padded.append(Span(piece.start - max(0.0, left), piece.end + max(0.0, right)))
    return padded
