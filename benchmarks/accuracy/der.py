"""`duet bench der`: who spoke when, on the meetings of a manifest, with and without the number of speakers given."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy.manifest import ManifestError, Meeting
from duet.wire import SpeakerTurn
from speech.decoding.trusted import write_pcm
from speech.diarizers.port import Diarizer
from speech.metrics import DiarizationErrors, der

MAX_AUDIO_SECONDS = 8 * 3600.0


@dataclass(frozen=True)
class Diarization:
    """`speakers_known`: the number was given. `found` and `speakers` are counts."""

    meeting: str
    speakers_known: bool
    errors: DiarizationErrors
    speakers: int
    found: int


async def run(
    diarizer: Diarizer, meetings: tuple[Meeting, ...], collar_seconds: float, on_progress: Callable[[str], None]
) -> list[Diarization]:
    """Diarizes every meeting twice. Raises `ManifestError` for too many speakers, and what decoder and diarizer raise."""
    results = []
    for meeting in meetings:
        with tempfile.TemporaryDirectory(prefix="duet-bench-") as folder:
            pcm = Path(folder) / "audio.pcm"
            write_pcm(meeting.audio, pcm, max_seconds=MAX_AUDIO_SECONDS)
            spoken = [SpeakerTurn(turn.start, turn.end, turn.speaker) for turn in meeting.turns]
            count = len({turn.speaker for turn in spoken})
            for known in (False, True):
                turns = await diarizer.diarize(pcm, speakers=count if known else None)
                heard = [SpeakerTurn(turn.start, turn.end, turn.speaker) for turn in turns]
                try:
                    errors = der(spoken, heard, collar_seconds=collar_seconds)
                except ValueError as error:
                    raise ManifestError(f"{meeting.id}: {error}") from error
                results.append(Diarization(meeting.id, known, errors, count, len({turn.speaker for turn in heard})))
                on_progress(meeting.id)
    return results
