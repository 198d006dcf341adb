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


def spoken(clip: sounds.Samples) -> list[tuple[float, float]]:
    return [(span.start, span.end) for span in vad.detect(np.round(np.clip(clip, -1, 1) * 32767).astype(np.int16))]


def near(found: list[tuple[float, float]], expected: list[tuple[float, float]], seconds: float = 0.12) -> bool:
    return len(found) == len(expected) and np.allclose(found, expected, atol=seconds)


@pytest.mark.parametrize("db", [-12, -24, -30, -36, -42])
def test_spans_do_not_depend_on_the_level(meeting: sounds.Samples, db: float) -> None:
    clip = meeting[: 25 * SAMPLE_RATE]
    assert near(spoken(clip * 10 ** (db / 20)), spoken(clip))


@pytest.mark.parametrize("disturbance", ["click", "hum"])
def test_quiet_speech_is_found_beside_clicks_and_hum(meeting: sounds.Samples, disturbance: str) -> None:
    clip = meeting[: 15 * SAMPLE_RATE]
    quiet = clip * 10 ** (-36 / 20)
    if disturbance == "click":
        quiet[[9_000, 100_000]] = 0.9
    else:
        time = np.arange(len(clip)) / SAMPLE_RATE
        quiet = quiet + 0.1 * np.sin(2 * np.pi * 50 * time) + 0.03 * np.sin(2 * np.pi * 150 * time)
    assert near(spoken(quiet), spoken(clip), 0.2)


def test_quiet_speech_between_loud_speech_is_found(meeting: sounds.Samples) -> None:
    clip = meeting[: 12 * SAMPLE_RATE]
    seconds, alone = len(clip) / SAMPLE_RATE, spoken(clip)
    both = spoken(np.concatenate([clip, clip * 10 ** (-33 / 20), clip]))
    for copy in range(3):
        for start, end in alone:
            found = sum(
                max(0.0, min(last, end + copy * seconds) - max(first, start + copy * seconds)) for first, last in both
            )
            assert found > 0.9 * (end - start), (copy, start)


def test_words_are_heard_as_a_whole(meeting: sounds.Samples) -> None:
    """Pieces of 0.25 to 0.6 s of speech, as loud as they are and quiet, alone and in silence."""
    first = vad.detect(meeting)[0]
    begin = int((first.start + 0.3) * SAMPLE_RATE)
    for seconds in (0.25, 0.4, 0.6):
        word = meeting[begin : begin + int(seconds * SAMPLE_RATE)]
        for db in (0, -30):
            quiet = word * 10 ** (db / 20)
            assert spoken(quiet) == [(0.0, len(word) / SAMPLE_RATE)], (seconds, db)
            (found,) = spoken(np.pad(quiet, 3 * SAMPLE_RATE))
            assert found[0] < 3.1
            assert found[1] > 2.9 + seconds


def other_sounds(seconds: float, seed: int) -> dict[str, sounds.Samples]:
    random, time = np.random.default_rng(seed), np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    white = random.normal(0, 0.1, len(time))
    keys = random.normal(0, 0.002, len(time))
    for at in random.integers(0, len(time) - 400, max(1, round(8 * seconds))):
        keys[at : at + 400] += random.normal(0, 0.3, 400) * np.exp(-np.arange(400) / 60)
    chords = sum(
        0.2 * np.sin(2 * np.pi * hertz * time) * np.exp(-6 * (time % 0.5)) for hertz in random.uniform(200, 900, 3)
    )
    found = {
        "silence": np.zeros(len(time)),
        "dither": random.normal(0, 1 / 32768, len(time)),
        "white": white,
        "muffled": np.convolve(white, np.ones(8) / 8, "same") * 3,
        "wind": np.convolve(white, np.ones(60) / 60, "same") * 5,
        "hum": 0.3 * np.sin(2 * np.pi * 50 * time) + 0.1 * np.sin(2 * np.pi * 150 * time),
        "tone": 0.3 * np.sin(2 * np.pi * 440 * time),
        "beeps": 0.3 * np.sin(2 * np.pi * 1000 * time) * (np.sin(2 * np.pi * 3 * time) > 0),
        "click": white * (np.abs(time - seconds / 2) < 0.002) * 8,
        "door": np.convolve(white * 10, np.ones(6) / 6, "same") * np.exp(-15 * time),
        "keys": keys,
        "chords": chords,
    }
    return {name: np.asarray(samples, np.float32) for name, samples in found.items()}


@pytest.mark.parametrize("seconds", [0.3, 1.9, 6.0])
@pytest.mark.parametrize("db", [0, -40])
def test_other_sounds_are_no_words_however_quiet(seconds: float, db: float) -> None:
    for name, samples in other_sounds(seconds, 1).items():
        assert spoken(samples * np.float32(10 ** (db / 20))) == [], name


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
    assert {len(idle) for idle in vad._IDLE.values()} == {1}
    fresh = []
    for clip in sequence:
        monkeypatch.setattr(vad, "_IDLE", {})
        fresh.append(vad.detect(clip))
    assert reused == fresh
    assert reused[0]


def test_a_thousand_spans_are_looked_at_once_each() -> None:
    """A unit test has three seconds of CPU time: compared each with each and again, so many spans would take two minutes."""
    tenth = SAMPLE_RATE // 10
    samples = np.tile(np.concatenate([sounds.tone(0.1), np.zeros(tenth, np.float32)]), 1000)
    spans = [Span(i / 5, i / 5 + 0.1) for i in range(1000)]
    assert vad._with_quiet(samples, spans, 1.0) == spans
