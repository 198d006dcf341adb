"""sherpa-onnx's diarization in a supervised child process, over a recording of any length."""

from __future__ import annotations

import asyncio
import secrets
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from duet.errors import Unavailable
from duet.settings import Settings
from duet.supervise.service import Service
from duet.wire import SpeakerTurn
from speech.diarizers.child.messages import Diarize, Diarized, DiarizeFailed, LocalTurn
from speech.diarizers.turns import named, smoothed
from speech.diarizers.windows import linked, windows
from speech.installed import installed_model
from speech.speakers.prints import Voice, mean_print, people
from speech.splitter import SAMPLE_RATE

LINK_DISTANCE = 0.5
"""Speakers of two windows are one person below this cosine distance of their voice prints, unless speaker.toml sets
`same_voice_distance`. Prints of 20 s are steadier than the short pieces that the clustering of a window sees."""
TIMEOUT_SECONDS = 900.0
EMBEDDED_ID = "duet-tiny-speaker"


def find_diarizer(settings: Settings) -> Path | None:
    """The speaker models' folder; None when there is none."""
    return installed_model(settings, chosen=settings.router.speaker_dir, embedded_id=EMBEDDED_ID, name="speaker")


class SherpaDiarizer:
    """`model_dir` holds seg.onnx (segmentation), spk.onnx (voice prints) and perhaps speaker.toml.

    speaker.toml may set `threshold` (distance of the clustering), `min_turn_seconds`, and `same_voice_distance` with
    `min_speaker_seconds`. With the latter two, a window's clusters are joined by their voice prints; the `threshold` should
    then be one that splits a person more readily than it joins two.
    """

    def __init__(self, model_dir: Path) -> None:
        if missing := [name for name in ("seg.onnx", "spk.onnx") if not (model_dir / name).is_file()]:
            raise Unavailable(f"the speaker models in {model_dir} lack {' and '.join(missing)}")
        self._rules = Rules(
            min_turn_seconds=_parameter(model_dir, "min_turn_seconds", 0.3),
            same_voice_distance=_parameter(model_dir, "same_voice_distance", None),
            min_speaker_seconds=_parameter(model_dir, "min_speaker_seconds", 0.0),
        )
        arguments = ["--model-dir", str(model_dir), "--threshold", str(_parameter(model_dir, "threshold", 0.5))]
        self._service: Service[Diarized | DiarizeFailed] = Service(
            "speech.diarizers.child.sherpa", arguments, Diarized | DiarizeFailed, name="diarizer"
        )

    async def diarize(
        self, pcm: Path, *, speakers: int | None = None, on_progress: Callable[[float], None] | None = None
    ) -> list[SpeakerTurn]:
        """Turns of a file that `speech.decoding.decoder.Decoder` wrote, by start. Speakers are S1, S2 … in order of appearance.

        `speakers` is their number if it is known. More are found only when voices are too short to compare, fewer only when
        voices cannot be told apart.

        `on_progress` is called with the share done. Raises `WorkerLost` or `Unavailable`.
        """
        total = pcm.stat().st_size // 2
        cuts = windows(total)
        # Not everybody speaks in every window, so the number holds for a window only when there is one window.
        in_window = speakers if len(cuts) == 1 else None
        parts: list[tuple[float, Diarized]] = []
        for first, last in cuts:
            request = Diarize(secrets.token_hex(8), str(pcm), first, last, in_window)
            answer = await self._service.call(request, timeout_seconds=TIMEOUT_SECONDS)
            if isinstance(answer, DiarizeFailed):
                raise Unavailable(f"diarization failed: {answer.message}")
            parts.append((first / SAMPLE_RATE, answer))
            if on_progress:
                on_progress(last / total if total else 1.0)
        return await asyncio.to_thread(joined, parts, self._rules, speakers)

    async def close(self) -> None:
        await self._service.close()


@dataclass(frozen=True)
class Rules:
    """How turns become people. `same_voice_distance` None: the clusters of a window are its people."""

    min_turn_seconds: float
    same_voice_distance: float | None = None
    min_speaker_seconds: float = 0.0


def joined(parts: Sequence[tuple[float, Diarized]], rules: Rules, speakers: int | None) -> list[SpeakerTurn]:
    """Turns of the whole recording from (offset in seconds, turns) of each window. Flicker is removed before voices are
    counted, and again where windows were joined."""
    in_window = speakers if len(parts) == 1 else None
    steady = [(offset, _counted(_steady(part, rules.min_turn_seconds), rules, in_window)) for offset, part in parts]
    distance = LINK_DISTANCE if rules.same_voice_distance is None else rules.same_voice_distance
    return named(smoothed(linked(steady, threshold=distance, speakers=speakers), rules.min_turn_seconds))


def _steady(part: Diarized, min_turn_seconds: float) -> Diarized:
    turns = smoothed([(turn.start, turn.end, turn.speaker) for turn in part.turns], min_turn_seconds)
    return Diarized(part.id, tuple(LocalTurn(*turn) for turn in turns), part.voices)


def _counted(part: Diarized, rules: Rules, speakers: int | None) -> Diarized:
    """One window with one voice a person. A turn whose voice is too short for a print goes to the speaker nearest in time."""
    if rules.same_voice_distance is None:
        return part
    seconds = [sum(t.end - t.start for t in part.turns if t.speaker == k) for k in range(len(part.voices))]
    heard = [Voice(print_ if length else (), length) for print_, length in zip(part.voices, seconds, strict=True)]
    who = people(
        heard,
        same_voice_distance=rules.same_voice_distance,
        min_speaker_seconds=rules.min_speaker_seconds,
        count=speakers,
    )
    known = [turn for turn in part.turns if who[turn.speaker] is not None]
    if not known:
        return part
    prints: list[tuple[float, ...]] = [()] * len(part.voices)
    for person in {number for number in who if number is not None}:
        own = [k for k, number in enumerate(who) if number == person]
        centre = mean_print(np.array([part.voices[k] for k in own]), np.array([seconds[k] for k in own]))
        prints[person] = tuple(centre.tolist())
    turns = []
    for turn in part.turns:
        nearest = min(known, key=lambda other: max(other.start - turn.end, turn.start - other.end, 0.0))
        number = who[nearest.speaker if who[turn.speaker] is None else turn.speaker]
        turns.append(LocalTurn(turn.start, turn.end, number if number is not None else turn.speaker))
    return Diarized(part.id, tuple(turns), tuple(prints))


_Default = TypeVar("_Default", float, None)


def _parameter(model_dir: Path, name: str, default: _Default) -> float | _Default:
    """A number from the models' speaker.toml, or the default. Raises `Unavailable` for a value that is not a number."""
    path = model_dir / "speaker.toml"
    if not path.is_file():
        return default
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8")).get(name)
        return default if found is None else float(found)
    except (tomllib.TOMLDecodeError, TypeError, ValueError) as error:
        raise Unavailable(f"{path}: {name} is no number") from error
