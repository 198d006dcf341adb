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
TIMEOUT_SECONDS = 900.0
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
    """`model_dir` holds seg.onnx (segmentation), spk.onnx (voice prints), and may hold speaker.toml with `threshold`."""

    def __init__(self, model_dir: Path) -> None:
        if missing := [name for name in ("seg.onnx", "spk.onnx") if not (model_dir / name).is_file()]:
            raise Unavailable(f"the speaker models in {model_dir} lack {' and '.join(missing)}")
        self._threshold = _threshold(model_dir)
        arguments = ["--model-dir", str(model_dir), "--threshold", str(self._threshold)]
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
        return named(linked(parts, threshold=self._threshold, speakers=speakers))

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


def _threshold(model_dir: Path) -> float:
    path = model_dir / "speaker.toml"
    if not path.is_file():
        return 0.5
    try:
        return float(tomllib.loads(path.read_text(encoding="utf-8"))["threshold"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise Unavailable(f"{path} needs one number, threshold") from error
