"""What a diarizer is to the meeting pipeline: who speaks when in a recording."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from duet.wire import SpeakerTurn


class Diarizer(Protocol):
    async def diarize(
        self, pcm: Path, *, speakers: int | None = None, on_progress: Callable[[float], None] | None = None
    ) -> list[SpeakerTurn]:
        """Turns of a file of 16-bit mono 16 kHz audio, by start. Speakers are S1, S2 ... in order of appearance; `speakers` is
        their number if it is known.

        `on_progress` is called with the share done. Raises `Unavailable`, also as `WorkerLost`.
        """
        ...

    async def close(self) -> None: ...
