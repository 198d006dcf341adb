"""Voice activity: the pinned model, spans of a recording with known truth, and silence."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import models
from speech import vad
from speech.decoding.trusted import samples as decode
from speech.splitter import SAMPLE_RATE, Span
from tests import sounds

MEETING = models.CARDS / "demo" / "meeting.flac"


@pytest.fixture(scope="module")
def meeting() -> sounds.Samples:
    return decode(MEETING, max_seconds=600)


@dataclass(frozen=True)
class Run:
    """One detection over the whole meeting, shared by the tests that only look at it."""

    spans: list[Span]
    progress: list[float]


@pytest.fixture(scope="module")
def run(meeting: sounds.Samples) -> Run:
    progress: list[float] = []
    return Run(vad.detect(meeting, on_progress=progress.append), progress)


def test_the_model_is_the_file_of_the_silero_wheel() -> None:
    found = importlib.util.find_spec("silero_vad")
    assert found is not None
    assert found.origin is not None
    original = Path(found.origin).parent / "data" / vad.MODEL.name
    assert hashlib.sha256(original.read_bytes()).hexdigest() == vad.MODEL_SHA256
    assert original.read_bytes() == vad.MODEL.read_bytes()


def test_another_file_is_refused_before_it_can_end_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.onnx"
    monkeypatch.setattr(vad, "_IDLE", {})  # a detector that another test left was made from the good file
    for content, said in ((b"not a model", "not the file that was pinned"), (None, "cannot be read")):
        if content is None:
            other.unlink()
        else:
            other.write_bytes(content)
        monkeypatch.setattr(vad, "MODEL", other)
        vad._checked_model.cache_clear()
        with pytest.raises(vad.VadUnavailable, match=said):
            vad.detect(sounds.tone(1.0))
    vad._checked_model.cache_clear()


def test_every_turn_of_a_meeting_is_found(run: Run) -> None:
    turns = json.loads(MEETING.with_suffix(".json").read_text(encoding="utf-8"))["turns"]
    speech = sum(turn["end"] - turn["start"] for turn in turns)
    heard = inside = 0.0
    for span in run.spans:
        heard += span.duration
        inside += sum(max(0.0, min(span.end, t["end"]) - max(span.start, t["start"])) for t in turns)
    assert inside > 0.85 * speech
    assert heard - inside < 0.05 * speech
    for turn in turns:
        assert any(span.start < turn["end"] and span.end > turn["start"] for span in run.spans), turn["text"]


def test_spans_are_ordered_and_inside_the_audio(meeting: sounds.Samples, run: Run) -> None:
    times = [time for span in run.spans for time in (span.start, span.end)]
    assert times == sorted(times)
    assert times[-1] <= len(meeting) / SAMPLE_RATE


def test_int16_gives_the_spans_of_float(meeting: sounds.Samples) -> None:
    clip = meeting[: 10 * SAMPLE_RATE]
    spans = vad.detect(clip)
    assert spans
    assert vad.detect(np.round(clip * 32767).astype(np.int16)) == spans


def test_speech_that_lasts_to_the_end_is_flushed(meeting: sounds.Samples, run: Run) -> None:
    first = run.spans[0]
    clip = meeting[: int((first.start + first.end) / 2 * SAMPLE_RATE)]
    assert vad.detect(clip)[-1].end == pytest.approx(len(clip) / SAMPLE_RATE, abs=0.1)


@pytest.mark.parametrize("count", [0, 1, 511, 512, 513])
def test_a_few_samples_are_no_speech(count: int) -> None:
    assert vad.detect(np.zeros(count, np.float32)) == []


def test_silence_noise_and_a_tone_are_no_speech() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 10 * SAMPLE_RATE).astype(np.float32)
    assert vad.detect(np.zeros(10 * SAMPLE_RATE, np.float32)) == []
    assert vad.detect(noise) == []
    assert vad.detect(sounds.tone(10.0)) == []


def test_progress_reaches_the_seconds_seen(meeting: sounds.Samples, run: Run) -> None:
    assert run.progress == sorted(run.progress)
    assert run.progress[-1] > len(meeting) / SAMPLE_RATE - 11


def test_another_thread_runs_meanwhile(meeting: sounds.Samples) -> None:
    """A service calls this in a thread; its event loop must go on."""
    running = threading.Event()
    ended = threading.Event()

    def work() -> None:
        running.set()
        vad.detect(meeting)
        ended.set()

    worker = threading.Thread(target=work)
    worker.start()
    running.wait()
    ticks = 0
    while not ended.is_set():
        time.sleep(0.001)  # gives the interpreter up and must get it back
        ticks += 1
    worker.join()
    assert ticks > 20


def test_a_detector_that_was_used_before_hears_the_same_as_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [decode(models.CARDS / "demo" / f"clip_{name}.flac", max_seconds=60) for name in ("zh", "en")]
    sequence = [clips[0], clips[1], np.zeros(8000, np.float32), clips[1][: len(clips[1]) // 2], clips[0]]
    monkeypatch.setattr(vad, "_IDLE", {})
    reused = [vad.detect(clip) for clip in sequence]
    assert [len(idle) for idle in vad._IDLE.values()] == [1]
    fresh = []
    for clip in sequence:
        monkeypatch.setattr(vad, "_IDLE", {})
        fresh.append(vad.detect(clip))
    assert reused == fresh
    assert reused[0]
