"""Where frames lie in time: the container's times, gaps as silence, and time stamps that cannot be followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.decoding.child.decode import decode, probe
from speech.decoding.child.timeline import MAX_GAP_SECONDS, TOLERANCE_SECONDS, Timed, Timeline
from speech.decoding.pcm import open_pcm
from speech.splitter import SAMPLE_RATE
from tests import sounds

FRAME = 0.02


def silences(starts: list[float | None], timeline: Timeline | None = None) -> list[float]:
    timed = [Timed(start, FRAME, None) for start in starts]
    return [round(silence, 3) for silence, _ in (timeline or Timeline()).placed(timed)]


def run(first: float, count: int) -> list[float | None]:
    return [first + FRAME * i for i in range(count)]


CASES: dict[str, tuple[list[float | None], list[float]]] = {
    "from zero": (run(0, 5), [0] * 5),
    "late start": (run(5, 3), [5, 0, 0]),
    "gap": (run(0, 3) + run(2, 3), [0, 0, 0, 1.94, 0, 0]),
    "gap before the last frame": ([0, 0.02, 3.0], [0, 0, 2.96]),
    "no time stamps": ([None] * 4, [0] * 4),
    "rounded to milliseconds": ([0, 0.021, 0.039, 0.061], [0] * 4),
    "priming before zero": (run(-0.007, 4), [0] * 4),
    "one wrong stamp behind": ([0, 0.02, -7.0, 0.06, 0.08], [0] * 5),
    "one wrong stamp ahead": ([0, 0.02, 900.0, 0.06, 0.08], [0] * 5),
    "a new chain begins at zero": (run(0, 4) + run(0, 4), [0] * 8),
    "a gap after a new chain": (run(0, 10) + run(0, 5) + run(1, 2), [0] * 15 + [0.9, 0]),
    "one frame each 0.4 s (DTX)": ([0.0, 0.02, 0.42, 0.82, 1.22, 1.24], [0, 0, 0.38, 0.38, 0.38, 0]),
    "a lone frame far ahead": ([0, 0.02, 9.0, 20.0, 20.02], [0, 0, 0, 19.94, 0]),
    "a jump too wide": (run(0, 2) + run(MAX_GAP_SECONDS + 1, 3), [0] * 5),
    "the clock wraps": (run(95443.0, 2), [0] * 2),
}


@pytest.mark.parametrize("name", CASES)
def test_where_silence_is_put(name: str) -> None:
    starts, expected = CASES[name]
    assert silences(starts) == pytest.approx(expected, abs=0.001)


def test_what_was_filled_and_what_was_not_followed_is_noted() -> None:
    timeline = Timeline()
    silences(run(0, 3) + run(2, 3) + run(0, 3), timeline)
    assert [note.split(" at ")[0] for note in timeline.notes] == [
        "1.9 s of silence stand for a gap in the time stamps", "the time stamps jump by -2.1 s",
    ]  # fmt: skip


def test_many_places_are_summed_up_in_one_note_each() -> None:
    timeline = Timeline()
    silences([start for number in range(9) for start in run(number, 3)], timeline)
    silences([start for _ in range(5) for start in run(0, 8)], timeline)
    assert timeline.notes == (
        "7.5 s of silence stand for 8 gaps in the time stamps, from 0.1 s on",
        "the time stamps jump 5 times, from 8.1 s on: times follow the sound there",
    )


@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6), st.floats(0, 10)), max_size=60))
def test_no_time_stamp_shortens_repeats_or_stretches_without_bound(starts: list[float | None]) -> None:
    timeline = Timeline()
    found = list(timeline.placed([Timed(start, FRAME, i) for i, start in enumerate(starts)]))
    assert [frame for _, frame in found] == list(range(len(starts)))
    assert all(silence == 0 or TOLERANCE_SECONDS < silence <= MAX_GAP_SECONDS for silence, _ in found)
    assert timeline.at == pytest.approx(sum(silence for silence, _ in found) + FRAME * len(starts))
    assert len(timeline.notes) <= 6


# Real containers ------------------------------------------------------------------------------------------------------

CONTAINERS = (("mp4", "aac", "mpeg4"), ("mkv", "aac", "mpeg4"), ("webm", "libopus", "libvpx"), ("mov", "aac", "mpeg4"))


def video(
    path: Path, audio: str, pictures: str | None, *, seconds: float, starts_at: float = 0.0, gap_at: float | None = None,
    gap: float = 0.0,
) -> Path:  # fmt: skip
    """Two seconds of tone that begin at `starts_at`, in a file whose picture lasts for `seconds`."""
    rate, lasting = 48_000, 2.0
    with av.open(str(path), "w") as container:
        shown: Any = container.add_stream(pictures, rate=5) if pictures else None
        if shown is not None:
            shown.width, shown.height, shown.pix_fmt = 64, 64, "yuv420p"
        heard: Any = container.add_stream(audio, rate=rate, layout="mono")
        if shown is not None:
            for number in range(int(seconds * 5)):
                picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
                picture.pts = number
                container.mux(shown.encode(picture))
            container.mux(shown.encode(None))
        size = 960
        tone = sounds.tone(lasting, rate=rate)
        if not heard.codec_context.is_open:
            heard.codec_context.open()
        size = heard.codec_context.frame_size or size
        converter = av.AudioResampler(format=heard.format, layout="mono", rate=rate, frame_size=size)
        whole = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        whole.sample_rate, whole.pts = rate, 0
        for frame in (*converter.resample(whole), *converter.resample(None)):
            for packet in heard.encode(frame):
                _moved(packet, starts_at, gap_at, gap)
                container.mux(packet)
        for packet in heard.encode(None):
            _moved(packet, starts_at, gap_at, gap)
            container.mux(packet)
    return path


def _moved(packet: Any, starts_at: float, gap_at: float | None, gap: float) -> None:
    late = starts_at + (gap if gap_at is not None and packet.pts * packet.time_base > gap_at else 0.0)
    packet.pts += round(late / packet.time_base)
    packet.dts = packet.pts


def heard_from_to(path: Path, tmp_path: Path) -> tuple[float, float, str | None]:
    found = decode(path, tmp_path / "a.pcm", max_seconds=3600)
    loud = np.flatnonzero(np.abs(open_pcm(found.files[0])) > 2000)
    return loud[0] / SAMPLE_RATE, loud[-1] / SAMPLE_RATE, found.truncated


@pytest.mark.parametrize(("kind", "audio", "pictures"), CONTAINERS)
def test_sound_that_begins_late_keeps_its_time(tmp_path: Path, kind: str, audio: str, pictures: str) -> None:
    path = video(tmp_path / f"a.{kind}", audio, pictures, seconds=6.0, starts_at=3.0)
    assert heard_from_to(path, tmp_path) == (pytest.approx(3.0, abs=0.05), pytest.approx(5.0, abs=0.06), None)


@pytest.mark.parametrize(("kind", "audio", "pictures"), CONTAINERS)
def test_a_picture_that_outlasts_the_sound_cuts_nothing(tmp_path: Path, kind: str, audio: str, pictures: str) -> None:
    path = video(tmp_path / f"a.{kind}", audio, pictures, seconds=9.0)
    assert heard_from_to(path, tmp_path) == (pytest.approx(0.0, abs=0.05), pytest.approx(2.0, abs=0.06), None)


@pytest.mark.parametrize("gap", [0.5, 3.0, 30.0])
@pytest.mark.parametrize(("kind", "audio"), [("webm", "libopus"), ("mkv", "aac")])
def test_what_follows_a_gap_keeps_its_time(tmp_path: Path, kind: str, audio: str, gap: float) -> None:
    path = video(tmp_path / f"a.{kind}", audio, None, seconds=0, gap_at=1.0, gap=gap)
    first, last, truncated = heard_from_to(path, tmp_path)
    assert (first, last) == (pytest.approx(0.0, abs=0.05), pytest.approx(2.0 + gap, abs=0.06))
    assert truncated is None


@pytest.mark.parametrize("starts_at", [0.0, 3.0, 40_000.0])
def test_a_stream_that_was_recorded_from_its_middle_is_whole(tmp_path: Path, starts_at: float) -> None:
    path = video(tmp_path / "a.ogg", "libopus", None, seconds=0, starts_at=starts_at)
    assert probe(path) == pytest.approx(2.0, abs=0.1)
    assert heard_from_to(path, tmp_path) == (pytest.approx(0.0, abs=0.05), pytest.approx(2.0, abs=0.06), None)
