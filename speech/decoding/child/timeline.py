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
_ISOLATED_SECONDS = 5.0
"""A frame with a gap before it and another behind it is believed when the first is no wider: in silence, Opus sends one frame
each 0.4 s or so (DTX, RFC 6716, 2.1.9)."""
_LISTED = 3

T = TypeVar("T")


@dataclass(frozen=True)
class Timed(Generic[T]):
    """A decoded frame. `start` is in the container's seconds from its zero; None when it has no time stamp."""

    start: float | None
    seconds: float
    frame: T


@dataclass
class _Seen:
    """Places in the time stamps: the first of them, and the sum of all."""

    count: int = 0
    seconds: float = 0.0
    first: list[tuple[float, float]] = field(default_factory=list)
    """Where, and how wide."""

    @property
    def at(self) -> float:
        return self.first[0][0]

    def add(self, at: float, wide: float) -> None:
        self.count += 1
        self.seconds += wide
        if len(self.first) < _LISTED:
            self.first.append((at, wide))


@dataclass
class Timeline:
    """Owned by one pass over one track. `at` is the end of what has been placed, in seconds."""

    at: float = 0.0
    _shift: float = 0.0
    """Added to the container's times, after a jump that was not followed."""
    _gaps: _Seen = field(default_factory=_Seen)
    _jumps: _Seen = field(default_factory=_Seen)

    def placed(self, frames: Iterable[Timed[T]]) -> Iterator[tuple[float, T]]:
        """Each frame with the seconds of silence that come before it."""
        held: Timed[T] | None = None
        for following in frames:
            if held is not None:
                yield self._place(held, following.start), held.frame
            held = following
        if held is not None:
            yield self._place(held, None), held.frame

    @property
    def notes(self) -> tuple[str, ...]:
        """What was filled with silence, and what could not be followed."""
        gaps, jumps = self._gaps, self._jumps
        if gaps.count > _LISTED:
            filled = [
                f"{gaps.seconds:.1f} s of silence stand for {gaps.count} gaps in the time stamps, from {gaps.at:.1f} s on"
            ]
        else:
            filled = [
                f"{wide:.1f} s of silence stand for a gap in the time stamps at {at:.1f} s" for at, wide in gaps.first
            ]
        if jumps.count > _LISTED:
            passed = [
                f"the time stamps jump {jumps.count} times, from {jumps.at:.1f} s on: times follow the sound there"
            ]
        else:
            passed = [
                f"the time stamps jump by {wide:.1f} s at {at:.1f} s: times after it follow the sound"
                for at, wide in jumps.first
            ]
        return (*filled, *passed)

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
        if following is not None:
            apart = following - start - seconds
            isolated = apart > TOLERANCE_SECONDS and 0 < jump <= _ISOLATED_SECONDS
            if abs(apart) > TOLERANCE_SECONDS and not isolated:
                return 0.0  # the next frame does not follow this one: its time stamp is wrong
        if 0 < jump <= MAX_GAP_SECONDS:
            if self.at > 0:
                self._gaps.add(self.at, jump)
            return jump
        self._shift -= jump
        if self.at > 0:
            self._jumps.add(self.at, jump)
        return 0.0
