"""Joining the diarizer's windows: the same voice is the same speaker, and flicker is no turn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from duet.errors import Unavailable
from duet.wire import SpeakerTurn
from speech.diarizers.child.messages import Diarized, LocalTurn
from speech.diarizers.sherpa import SherpaDiarizer
from speech.diarizers.turns import named, smoothed
from speech.diarizers.windows import OVERLAP_SECONDS, WINDOW_SECONDS, linked, windows
from speech.splitter import SAMPLE_RATE

STEP = WINDOW_SECONDS - OVERLAP_SECONDS


def voice(person: int, *, drift: float = 0.0) -> tuple[float, ...]:
    """A voice print: one direction a person, turned a little by `drift`."""
    vector = np.zeros(8)
    vector[person], vector[7] = 1.0, drift
    return tuple((vector / np.linalg.norm(vector)).tolist())


def window(turns: list[tuple[float, float, int]], voices: list[tuple[float, ...]]) -> Diarized:
    return Diarized("w", tuple(LocalTurn(*turn) for turn in turns), tuple(voices))


def test_windows_cover_everything_and_overlap() -> None:
    total = int(3 * 3600 * SAMPLE_RATE)
    found = windows(total)
    assert found[0][0] == 0
    assert found[-1][1] == total
    for (_, end), (start, _) in itertools.pairwise(found):
        assert (end - start) / SAMPLE_RATE == pytest.approx(OVERLAP_SECONDS)
    assert max(last - first for first, last in found) / SAMPLE_RATE <= WINDOW_SECONDS


@pytest.mark.parametrize("seconds", [0.0, 0.5, 29.0, 31.0, WINDOW_SECONDS])
def test_a_short_recording_is_one_window(seconds: float) -> None:
    assert windows(int(seconds * SAMPLE_RATE)) == [(0, int(seconds * SAMPLE_RATE))]


def test_a_voice_keeps_its_speaker_across_windows() -> None:
    parts = [
        (0.0, window([(0, 100, 0), (100, 720, 1)], [voice(0), voice(1)])),
        (STEP, window([(0, 100, 0), (100, 720, 1)], [voice(1, drift=0.4), voice(0, drift=0.4)])),
    ]
    speakers = {(start, speaker) for start, _, speaker in linked(parts, threshold=0.5, speakers=None)}
    assert speakers == {(0, 0), (100, 1), (STEP + 15, 1), (STEP + 100, 0)}


def test_a_new_voice_is_a_new_speaker() -> None:
    parts = [(0.0, window([(0, 720, 0)], [voice(0)])), (STEP, window([(40, 720, 0)], [voice(3)]))]
    assert [turn.speaker for turn in named(linked(parts, threshold=0.5, speakers=None))] == ["S1", "S2"]


def test_two_voices_of_one_window_stay_apart_while_the_number_allows() -> None:
    parts = [(0.0, window([(0, 10, 0), (10, 20, 1)], [voice(0), voice(0, drift=0.1)]))]
    assert len({speaker for *_, speaker in linked(parts, threshold=0.5, speakers=None)}) == 2
    assert len({speaker for *_, speaker in linked(parts, threshold=0.5, speakers=2)}) == 2
    assert len({speaker for *_, speaker in linked(parts, threshold=0.5, speakers=1)}) == 1


def test_a_given_number_of_speakers_is_reached_by_the_nearest_voices() -> None:
    parts = [
        (i * STEP, window([(100, 200, 0), (300, 400, 1)], [voice(0, drift=0.3 * i), voice(1, drift=0.9)]))
        for i in range(4)
    ]
    turns = linked(parts, threshold=0.01, speakers=2)
    assert [speaker for *_, speaker in turns] == [turns[0][2], turns[1][2]] * 4


def test_a_voice_without_a_turn_does_not_count() -> None:
    voices = [voice(0), voice(0, drift=0.2), voice(3)]
    parts = [(0.0, window([(0, 10, 0), (10, 20, 1)], voices))]
    assert len({speaker for *_, speaker in linked(parts, threshold=0.5, speakers=2)}) == 2


def test_nobody_speaks_twice_in_the_overlap() -> None:
    parts = [(0.0, window([(690, 720, 0)], [voice(0)])), (STEP, window([(0, 30, 0)], [voice(0)]))]
    assert linked(parts, threshold=0.5, speakers=None) == [(690, 705, 0), (705, 720, 0)]


def test_a_voice_without_a_print_is_its_own_speaker() -> None:
    parts = [(0.0, window([(0, 1, 0), (2, 2.3, 1)], [voice(0), ()]))]
    assert len({speaker for *_, speaker in linked(parts, threshold=0.5, speakers=None)}) == 2


def test_flicker_becomes_part_of_its_longer_neighbour() -> None:
    turns = [(0.0, 5.0, 0), (5.0, 5.4, 1), (5.4, 6.0, 0), (8.0, 8.5, 1), (10.0, 15.0, 1)]
    assert smoothed(turns, 1.0) == [(0.0, 6.0, 0), (8.0, 8.5, 1), (10.0, 15.0, 1)]


def test_labels_follow_appearance_and_overlap_is_marked() -> None:
    assert named([(0.0, 2.0, 7), (1.5, 3.0, 2), (3.0, 4.0, 7)]) == [
        SpeakerTurn(0.0, 2.0, "S1", overlap=True),
        SpeakerTurn(1.5, 3.0, "S2", overlap=True),
        SpeakerTurn(3.0, 4.0, "S1"),
    ]


def test_missing_models_are_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("models")
    (folder / "seg.onnx").touch()
    with pytest.raises(Unavailable, match=r"lack spk.onnx"):
        SherpaDiarizer(folder)


def test_parameters_of_the_models_are_checked(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("models")
    for name in ("seg.onnx", "spk.onnx"):
        (folder / name).touch()
    for text, name in (
        ('threshold = "low"', "threshold"),
        ("min_turn_seconds = [1]", "min_turn_seconds"),
        ('same_voice_distance = "near"', "same_voice_distance"),
        ("min_speaker_seconds = {}", "min_speaker_seconds"),
    ):
        (folder / "speaker.toml").write_text(text)
        with pytest.raises(Unavailable, match=f"{name} is no number"):
            SherpaDiarizer(folder)
