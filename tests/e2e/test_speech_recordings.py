"""Real recordings through every part of the library: sane numbers, no crash. The embedded models' text is not judged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import models
from duet.wire import SpeakerTurn
from speech import vad
from speech.decoding.child.decode import probe
from speech.decoding.trusted import samples as decode
from speech.decoding.trusted import write_pcm
from speech.diarizers.sherpa import SherpaDiarizer
from speech.formats import to_srt
from speech.metrics import der
from speech.recognisers.sensevoice import SenseVoice
from speech.recognisers.stitching import shifted
from speech.splitter import SAMPLE_RATE, split

FOLDER = os.environ.get("DUET_TEST_AUDIO", "")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.recordings,
    pytest.mark.skipif(not FOLDER, reason="DUET_TEST_AUDIO names no folder of recordings"),
]
SUFFIXES = {".wav", ".mp3", ".flac", ".opus", ".m4a", ".webm"}
RECORDINGS = sorted(path for path in Path(FOLDER).iterdir() if path.suffix in SUFFIXES) if FOLDER else []


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
async def test_a_recording_becomes_segments_and_subtitles(path: Path) -> None:
    declared = probe(path)
    samples = decode(path, max_seconds=3600)
    seconds = len(samples) / SAMPLE_RATE
    assert declared is None or seconds == pytest.approx(declared, abs=0.2)
    spans = split(samples, vad.detect(samples))
    assert spans, "also the faintest, of half a second at -34 dB, is speech"
    recogniser = SenseVoice(models.EMBEDDED / "duet-tiny-asr")
    try:
        clips = [samples[int(span.start * SAMPLE_RATE) : int(span.end * SAMPLE_RATE)] for span in spans]
        heard = await recogniser.transcribe(clips)
    finally:
        await recogniser.close()
    segments = [shifted(segment, span.start) for segment, span in zip(heard, spans, strict=True)]
    assert all(0 <= segment.start < segment.end <= seconds + 0.01 for segment in segments)
    assert to_srt(segments).count("-->") >= sum(bool(segment.text) for segment in segments)


def _rttm(path: Path) -> list[SpeakerTurn]:
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("SPEAKER")]
    return [SpeakerTurn(float(p[3]), float(p[3]) + float(p[4]), p[7]) for p in lines]


@pytest.mark.parametrize("path", [p for p in RECORDINGS if p.with_suffix(".rttm").exists()], ids=lambda path: path.name)
async def test_a_conversation_is_diarized_near_its_reference(path: Path, tmp_path: Path) -> None:
    pcm = tmp_path / "a.pcm"
    write_pcm(path, pcm, max_seconds=3600)
    reference = _rttm(path.with_suffix(".rttm"))
    diarizer = SherpaDiarizer(models.EMBEDDED / "duet-tiny-speaker")
    try:
        turns = await diarizer.diarize(pcm, speakers=len({turn.speaker for turn in reference}))
    finally:
        await diarizer.close()
    heard = [SpeakerTurn(turn.start, turn.end, turn.speaker) for turn in turns]
    assert der(reference, heard).rate < 1.0  # the tiny models were made for synthetic voices
