"""Where decoded frames lie in time: as the container says, not as the samples add up.

A track that begins late, or that misses packets, has silence there, so that what follows keeps its time. Time stamps that no
player could follow are not: a single wrong one is passed over, and after a jump backwards, or one too wide, the audio goes on
where it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

TOLERANCE_SECONDS = 0.1
"""A smaller difference is rounding or drift of a clock. FFmpeg's own resampler closes gaps from the same width on
(`min_hard_comp`, https://ffmpeg.org/ffmpeg-resampler.html)."""
MAX_GAP_SECONDS = 3600.0
"""A wider gap is a wrong time stamp."""
_MAX_NOTES = 8

T = TypeVar("T")


@dataclass(frozen=True)
class Timed(Generic[T]):
    """A decoded frame. `start` is in the container's seconds from its zero; None when it has no time stamp."""

    start: float | None
    seconds: float
    frame: T


@dataclass
class Timeline:
    """Owned by one pass over one track. `at` is the end of what has been placed, in seconds."""

    at: float = 0.0
    notes: list[str] = field(default_factory=list)
    _shift: float = 0.0
    """Added to the container's times, after a jump that was not followed."""

    def placed(self, frames: Iterable[Timed[T]]) -> Iterator[tuple[float, T]]:
        """Each frame with the seconds of silence that come before it."""
        held: Timed[T] | None = None
        for following in frames:
            if held is not None:
                yield self._place(held, following.start), held.frame
            held = following
        if held is not None:
            yield self._place(held, None), held.frame

    def _place(self, timed: Timed[T], following: float | None) -> float:
        silence = 0.0 if timed.start is None else self._silence(timed.start, timed.seconds, following)
        self.at += silence + timed.seconds
        return silence

    def _silence(self, start: float, seconds: float, following: float | None) -> float:
        jump = start + self._shift - self.at
        if abs(jump) <= TOLERANCE_SECONDS:
            return 0.0
        if self._shift and abs(start - self.at) <= TOLERANCE_SECONDS:
            self._shift = 0.0  # back at the container's own times
            return 0.0
        if following is not None and abs(following - start - seconds) > TOLERANCE_SECONDS:
            return 0.0  # the next frame does not follow this one: its time stamp is wrong
        if 0 < jump <= MAX_GAP_SECONDS:
            if self.at > 0:
                self._note(f"{jump:.1f} s of silence stand for a gap in the time stamps at {self.at:.1f} s")
            return jump
        self._shift -= jump
        if self.at > 0:
            self._note(f"the time stamps jump by {jump:.1f} s at {self.at:.1f} s: times after it follow the sound")
        return 0.0

    def _note(self, sentence: str) -> None:
        if len(self.notes) < _MAX_NOTES:
            self.notes.append(sentence)
