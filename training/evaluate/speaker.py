"""Measure diarization with `duet-tiny-speaker`, on meetings with an unknown number of people.

    python -m training.evaluate.speaker FOLDER [--model models/embedded/duet-tiny-speaker]

FOLDER has meetings in the format of `duet bench der` (`python -m training.people` makes them). Prints figures as JSON:
the diarization error rate with a collar of 0.25 s over all meetings together, its parts, and how often the number of
people is right. It runs Duet's own diarizer and needs no torch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import models
from duet.wire import SpeakerTurn
from speech.decoding.trusted import write_pcm
from speech.diarizers.child.messages import Diarize, Diarized
from speech.diarizers.child.sherpa import diarize
from speech.diarizers.sherpa import Rules, SherpaDiarizer, joined
from speech.metrics import DiarizationErrors, der

MAX_AUDIO_SECONDS: Final = 720.0
"""The length of one window of the diarizer."""
SAME_VOICE_DISTANCES: Final = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8)
MIN_SPEAKER_SECONDS: Final = (0.0, 2.0, 3.0, 4.0)
MIN_TURN_SECONDS: Final = (0.8, 1.2, 1.6)


@dataclass(frozen=True)
class Truth:
    name: str
    audio: Path
    turns: tuple[SpeakerTurn, ...]

    @property
    def people(self) -> int:
        return len({turn.speaker for turn in self.turns})


@dataclass(frozen=True)
class Score:
    meeting: Truth
    errors: DiarizationErrors
    found: int


def read(folder: Path) -> Iterator[Truth]:
    """The meetings of a folder, by name."""
    for path in sorted(folder.glob("*.json")):
        meeting = json.loads(path.read_text(encoding="utf-8"))
        turns = tuple(SpeakerTurn(turn["start"], turn["end"], turn["speaker"]) for turn in meeting["turns"])
        yield Truth(meeting["id"], folder / meeting["audio"], turns)


def score(meeting: Truth, turns: Sequence[SpeakerTurn]) -> Score:
    heard = [SpeakerTurn(turn.start, turn.end, turn.speaker) for turn in turns]
    return Score(meeting, der(meeting.turns, heard), len({turn.speaker for turn in heard}))


def figures(scores: Sequence[Score]) -> dict[str, Any]:
    """Error rates as shares of all speech, the largest DER, and how often the number of people was right."""
    total = sum((one.errors for one in scores), DiarizationErrors())
    result: dict[str, Any] = {
        "meetings": len(scores),
        "der": round(total.rate, 4),
        "missed": round(total.missed / total.total, 4),
        "false_alarm": round(total.false_alarm / total.total, 4),
        "confusion": round(total.confusion / total.total, 4),
        "largest_der": round(max(one.errors.rate for one in scores), 4),
        "number_right": sum(one.found == one.meeting.people for one in scores),
    }
    return result


def report(scores: Sequence[Score]) -> dict[str, Any]:
    """`figures` over all meetings, and by the number of people who speak."""
    counts = sorted({one.meeting.people for one in scores})
    by_people = {str(count): figures([one for one in scores if one.meeting.people == count]) for count in counts}
    return {**figures(scores), "by_people": by_people}


async def measure(model: Path, meetings: Sequence[Truth]) -> dict[str, Any]:
    """`report` of a model with its own speaker.toml, and its real-time factor (seconds of work per second of audio)."""
    diarizer, scores, audio_seconds, spent = SherpaDiarizer(model), [], 0.0, 0.0
    try:
        for meeting in meetings:
            with tempfile.TemporaryDirectory(prefix="duet-speaker-") as folder:
                pcm = Path(folder) / "audio.pcm"
                write_pcm(meeting.audio, pcm, max_seconds=MAX_AUDIO_SECONDS)
                began = time.monotonic()
                scores.append(score(meeting, await diarizer.diarize(pcm)))
                spent += time.monotonic() - began
                audio_seconds += pcm.stat().st_size / 2 / 16_000
    finally:
        await diarizer.close()
    return {
        **report(scores),
        "audio_seconds": round(audio_seconds),
        "real_time_factor": round(spent / audio_seconds, 4),
    }


def listen(model: Path, threshold: float, meeting: Truth) -> Diarized:
    """A meeting's clusters, before they are joined into people."""
    with tempfile.TemporaryDirectory(prefix="duet-speaker-") as folder:
        pcm = Path(folder) / "audio.pcm"
        write_pcm(meeting.audio, pcm, max_seconds=MAX_AUDIO_SECONDS)
        return diarize(model, threshold, Diarize(meeting.name, str(pcm), 0, pcm.stat().st_size // 2, None))


def choose(model: Path, threshold: float, meetings: Sequence[Truth]) -> tuple[Rules, dict[str, Any]]:
    """The rules with the lowest error on `meetings`, and their `report`. Of nearly equal rules it takes the middle ones
    by `same_voice_distance`."""
    heard = [(meeting, listen(model, threshold, meeting)) for meeting in meetings]
    tried = []
    for same_voice in SAME_VOICE_DISTANCES:
        for least in MIN_SPEAKER_SECONDS:
            for turn in MIN_TURN_SECONDS:
                rules = Rules(turn, same_voice, least)
                scores = [score(meeting, joined([(0.0, part)], rules, None)) for meeting, part in heard]
                tried.append((sum((one.errors for one in scores), DiarizationErrors()).rate, rules, scores))
    tried.sort(key=lambda one: one[0])
    near = [one for one in tried if one[0] <= tried[0][0] + 0.001]
    middle = sorted(near, key=lambda one: one[1].same_voice_distance or 0.0)[len(near) // 2]
    return middle[1], report(middle[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=models.EMBEDDED / "duet-tiny-speaker")
    options = parser.parse_args()
    meetings = list(read(options.folder))
    if not meetings:
        parser.error(f"no meeting in {options.folder}")
    print(json.dumps(asyncio.run(measure(options.model, meetings)), indent=1))


if __name__ == "__main__":
    main()
