"""Long recordings in windows: where they lie, and which of their speakers are one person.

sherpa's clustering takes time and memory with the square of the length. So windows of 12 minutes are diarized one by one,
and their speakers are linked by their voice prints.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from speech.diarizers.child.messages import Diarized
from speech.speakers.prints import agglomerated
from speech.splitter import SAMPLE_RATE

WINDOW_SECONDS, OVERLAP_SECONDS = 720.0, 30.0


def windows(total: int) -> list[tuple[int, int]]:
    """First and last sample of each window. All but the last have full length, and each overlaps the next."""
    step, window = int((WINDOW_SECONDS - OVERLAP_SECONDS) * SAMPLE_RATE), int(WINDOW_SECONDS * SAMPLE_RATE)
    starts = range(0, max(total - int(OVERLAP_SECONDS * SAMPLE_RATE), 1), step)
    return [(first, min(total, first + window)) for first in starts]


def linked(
    parts: Sequence[tuple[float, Diarized]], *, threshold: float, speakers: int | None
) -> list[tuple[float, float, int]]:
    """Turns of all windows as (start, end, speaker), with the same number for the same voice in all windows.

    Voices without a turn do not count. In the overlap of two windows, the first half comes from the earlier one.
    """
    heard = [
        (index, local) for index, (_, part) in enumerate(parts) for local in sorted({t.speaker for t in part.turns})
    ]
    voices = [(index, parts[index][1].voices[local]) for index, local in heard]
    names = dict(zip(heard, _clustered(voices, threshold=threshold, speakers=speakers), strict=True))
    turns: list[tuple[float, float, int]] = []
    for index, (offset, part) in enumerate(parts):
        begin = offset + OVERLAP_SECONDS / 2 if index else 0.0
        end = parts[index + 1][0] + OVERLAP_SECONDS / 2 if index + 1 < len(parts) else float("inf")
        for turn in part.turns:
            start, finish = max(begin, offset + turn.start), min(end, offset + turn.end)
            if finish > start:
                turns.append((start, finish, names[index, turn.speaker]))
    return sorted(turns)


def _clustered(voices: Sequence[tuple[int, tuple[float, ...]]], *, threshold: float, speakers: int | None) -> list[int]:
    """A cluster number for each (window, voice print): joined by average cosine distance up to `threshold`, or until
    `speakers` are left if that is given.

    Two voices of one window stay different people while the number allows it. A voice without a print (too short) stays
    alone.
    """
    distance = np.full((len(voices), len(voices)), np.inf)
    for i, (window, voice) in enumerate(voices):
        for j, (other_window, other) in enumerate(voices[:i]):
            if voice and other:
                # Four is more than any cosine distance: such a pair is joined only when no other pair is left.
                apart = 1.0 - float(np.dot(voice, other)) + (4.0 if window == other_window else 0.0)
                distance[i, j] = distance[j, i] = apart
    limit = threshold if speakers is None else None
    return agglomerated(distance, [1.0] * len(voices), limit=limit, count=speakers)
