"""Raw turns as a reader wants them: no flicker, labels in order of appearance, overlapping speech marked."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from duet.wire import SpeakerTurn

_TOUCHING_SECONDS = 0.15


def smoothed(turns: Sequence[tuple[float, float, int]], min_seconds: float) -> list[tuple[float, float, int]]:
    """Turns as (start, end, speaker), without flicker.

    Touching turns of one speaker become one. Then each turn shorter than `min_seconds` joins a longer one that it touches,
    the shortest first: a change of speaker that short is the model's flicker. A short turn that touches none stays.
    """
    result = _fused(turns)
    while True:
        short = [
            (end - start, i, j)
            for i, (start, end, _) in enumerate(result)
            for j in (i - 1, i + 1)
            if end - start < min_seconds
            and 0 <= j < len(result)
            and max(start, result[j][0]) - min(end, result[j][1]) < _TOUCHING_SECONDS
            and result[j][1] - result[j][0] >= end - start
        ]
        if not short:
            return _fused(result)
        _, i, j = min(short)
        low, high = min(i, j), max(i, j)
        result[low : high + 1] = [(result[low][0], max(result[low][1], result[high][1]), result[j][2])]


def _fused(turns: Sequence[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    fused: list[tuple[float, float, int]] = []
    for start, end, speaker in turns:
        if fused and fused[-1][2] == speaker and start - fused[-1][1] < _TOUCHING_SECONDS:
            fused[-1] = (fused[-1][0], max(fused[-1][1], end), speaker)
        else:
            fused.append((start, end, speaker))
    return fused


def named(turns: Sequence[tuple[float, float, int]]) -> list[SpeakerTurn]:
    """Turns with labels in order of appearance; turns that overlap another speaker's are marked."""
    labels: dict[int, str] = {}
    result: list[SpeakerTurn] = []
    for start, end, speaker in turns:
        label = labels.setdefault(speaker, f"S{len(labels) + 1}")
        result.append(SpeakerTurn(round(start, 3), round(end, 3), label))
    for i, turn in enumerate(result):
        for j in range(i + 1, len(result)):
            if result[j].start >= turn.end:
                break
            if result[j].speaker != turn.speaker:
                for k in (i, j):
                    result[k] = msgspec.structs.replace(result[k], overlap=True)
    return result
