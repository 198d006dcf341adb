"""Who speaks when, over a recording of any length.

sherpa's clustering takes time and memory by the square of the length, so windows of 12 minutes are diarized apart, and
their speakers are linked by their voice prints.
"""

from __future__ import annotations

import secrets
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import models
from duet.errors import Unavailable
from duet.settings import Settings
from duet.supervise import Service
from speech.diarizer_messages import Diarize, Diarized, DiarizeFailed
from speech.splitter import SAMPLE_RATE

WINDOW_SECONDS, OVERLAP_SECONDS = 720.0, 30.0
LINK_DISTANCE = 0.5
"""Cosine distance of voice prints below which speakers of two windows are one: prints of 20 s are steadier than the
short pieces that the clustering of a window sees."""
TIMEOUT_SECONDS = 900.0
_TOUCHING_SECONDS = 0.15
EMBEDDED_ID = "duet-tiny-speaker"


@dataclass(frozen=True)
class Turn:
    """One speaker's stretch, in seconds. `overlap`: someone else speaks at the same time."""

    start: float
    end: float
    speaker: str
    overlap: bool = False


def find_diarizer(settings: Settings) -> Path | None:
    """The speaker models' folder: set, embedded, or $DUET_HOME/models/speaker; None when there is none."""
    if settings.router.speaker_dir is not None:
        return settings.router.speaker_dir
    if settings.embedded:
        return models.EMBEDDED / EMBEDDED_ID
    folder = settings.home / "models" / "speaker"
    return folder if folder.is_dir() else None


class Diarizer:
    """`model_dir` holds seg.onnx (segmentation), spk.onnx (voice prints), and may hold speaker.toml with
    `threshold` (clustering distance) and `min_turn_seconds`."""

    def __init__(self, model_dir: Path) -> None:
        if missing := [name for name in ("seg.onnx", "spk.onnx") if not (model_dir / name).is_file()]:
            raise Unavailable(f"the speaker models in {model_dir} lack {' and '.join(missing)}")
        self._min_turn_seconds = _parameter(model_dir, "min_turn_seconds", 0.3)
        arguments = ["--model-dir", str(model_dir), "--threshold", str(_parameter(model_dir, "threshold", 0.5))]
        self._service: Service[Diarized | DiarizeFailed] = Service(
            "speech.diarizer_child", arguments, Diarized | DiarizeFailed, name="diarizer"
        )

    async def diarize(
        self, pcm: Path, *, speakers: int | None = None, on_progress: Callable[[float], None] | None = None
    ) -> list[Turn]:
        """Turns of a file of `speech.decode.decode_to_pcm`, by start. Speakers are S1, S2 … in order of appearance.

        `on_progress` is called with the share done. Raises `WorkerLost` or `Unavailable`.
        """
        total = pcm.stat().st_size // 2
        step, window = int((WINDOW_SECONDS - OVERLAP_SECONDS) * SAMPLE_RATE), int(WINDOW_SECONDS * SAMPLE_RATE)
        parts: list[tuple[float, Diarized]] = []
        for first in range(0, max(total - int(OVERLAP_SECONDS * SAMPLE_RATE), 1), step):
            last = min(total, first + window)
            request = Diarize(secrets.token_hex(8), str(pcm), first, last, speakers)
            answer = await self._service.call(request, timeout_seconds=TIMEOUT_SECONDS)
            if isinstance(answer, DiarizeFailed):
                raise Unavailable(f"diarization failed: {answer.message}")
            parts.append((first / SAMPLE_RATE, answer))
            if on_progress:
                on_progress(last / total if total else 1.0)
        return named(smoothed(linked(parts, threshold=LINK_DISTANCE, speakers=speakers), self._min_turn_seconds))

    async def close(self) -> None:
        await self._service.close()


def linked(
    parts: Sequence[tuple[float, Diarized]], *, threshold: float, speakers: int | None
) -> list[tuple[float, float, int]]:
    """Turns of all windows as (start, end, speaker), a window's speaker joined to the known voice nearest to it.

    Greedy, window by window: a voice further than `threshold` (cosine distance) from all known ones is a new speaker,
    unless their number is given and reached. In the overlap of two windows the earlier one speaks up to its middle.
    """
    known: list[np.ndarray] = []
    turns: list[tuple[float, float, int]] = []
    for index, (offset, part) in enumerate(parts):
        names: dict[int, int] = {}
        taken: set[int] = set()
        for local, voice in enumerate(part.voices):
            nearest = _nearest(voice, known, taken)
            full = speakers is not None and len(known) >= speakers
            if nearest is not None and (nearest[0] <= threshold or full):
                names[local] = nearest[1]
            else:
                names[local] = len(known)
                known.append(np.array(voice or [0.0]))
            taken.add(names[local])
        begin = offset + OVERLAP_SECONDS / 2 if index else 0.0
        end = parts[index + 1][0] + OVERLAP_SECONDS / 2 if index + 1 < len(parts) else float("inf")
        for turn in part.turns:
            start, stop = max(begin, offset + turn.start), min(end, offset + turn.end)
            if stop > start:
                turns.append((start, stop, names[turn.speaker]))
    return sorted(turns)


def _nearest(voice: tuple[float, ...], known: list[np.ndarray], taken: set[int]) -> tuple[float, int] | None:
    """(cosine distance, index) of the nearest known voice that no other speaker of this window has."""
    vector = np.array(voice)
    distances = [
        (1.0 - float(vector @ other), i)
        for i, other in enumerate(known)
        if i not in taken and len(other) == len(vector) and len(vector) > 1
    ]
    return min(distances, default=None)


def smoothed(turns: Sequence[tuple[float, float, int]], min_seconds: float) -> list[tuple[float, float, int]]:
    """Turns shorter than `min_seconds` that touch another one become part of it: a change of speaker that short is the
    model's flicker. A short turn that stands alone stays."""
    result = list(turns)
    while True:
        short = [
            (end - start, i, j)
            for i, (start, end, speaker) in enumerate(result)
            for j in (i - 1, i + 1)
            if end - start < min_seconds
            and 0 <= j < len(result)
            and result[j][2] != speaker
            and max(start, result[j][0]) - min(end, result[j][1]) < _TOUCHING_SECONDS
            and result[j][1] - result[j][0] >= end - start
        ]
        if not short:
            return result
        _, i, j = min(short)
        low, high = min(i, j), max(i, j)
        result[low : high + 1] = [(result[low][0], max(result[low][1], result[high][1]), result[j][2])]


def named(turns: Sequence[tuple[float, float, int]]) -> list[Turn]:
    """Labels by first appearance, and the mark of overlapping speech."""
    labels: dict[int, str] = {}
    result: list[Turn] = []
    for start, end, speaker in turns:
        label = labels.setdefault(speaker, f"S{len(labels) + 1}")
        result.append(Turn(round(start, 3), round(end, 3), label))
    for i, turn in enumerate(result):
        for j in range(i + 1, len(result)):
            if result[j].start >= turn.end:
                break
            if result[j].speaker != turn.speaker:
                result[i], result[j] = replace(result[i], overlap=True), replace(result[j], overlap=True)
    return result


def _parameter(model_dir: Path, name: str, default: float) -> float:
    """A number of the models' own speaker.toml, if there is one and it says it."""
    path = model_dir / "speaker.toml"
    if not path.is_file():
        return default
    try:
        return float(tomllib.loads(path.read_text(encoding="utf-8")).get(name, default))
    except (tomllib.TOMLDecodeError, TypeError, ValueError) as error:
        raise Unavailable(f"{path}: {name} is no number") from error
