"""Voices become people: near prints are one, short voices found nobody, a known number is kept."""

from __future__ import annotations

import numpy as np
import pytest

from duet.wire import SpeakerTurn
from speech.diarizers.child.messages import Diarized, LocalTurn
from speech.diarizers.sherpa import Rules, joined
from speech.speakers.prints import Voice, agglomerated, mean_print, people


def voice(person: int, seconds: float, *, drift: float = 0.0) -> Voice:
    """A print in the direction of its person, turned a little by `drift`."""
    vector = np.zeros(8)
    vector[person], vector[7] = 1.0, drift
    return Voice(tuple((vector / np.linalg.norm(vector)).tolist()), seconds)


def test_near_prints_are_one_person_and_far_ones_are_not() -> None:
    voices = [voice(0, 9), voice(1, 8), voice(0, 7, drift=0.5), voice(1, 6, drift=0.5)]
    first, second, third, fourth = people(voices, same_voice_distance=0.3, min_speaker_seconds=3)
    assert first == third
    assert second == fourth
    assert first != second


def test_a_short_voice_founds_no_person() -> None:
    voices = [voice(0, 20), voice(1, 20), voice(1, 1.5, drift=1.5)]
    assert people(voices, same_voice_distance=0.2, min_speaker_seconds=3) == [0, 1, 1]
    assert len(set(people(voices, same_voice_distance=0.2, min_speaker_seconds=0))) == 3


def test_short_voices_alone_are_one_person_at_least() -> None:
    voices = [voice(0, 1), voice(1, 2)]
    assert len(set(people(voices, same_voice_distance=0.2, min_speaker_seconds=3))) == 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_known_number_of_people_is_kept(count: int) -> None:
    voices = [voice(0, 9), voice(0, 9, drift=0.2), voice(1, 8), voice(2, 2)]
    assert len(set(people(voices, same_voice_distance=0.01, min_speaker_seconds=3, count=count))) == count


def test_a_voice_without_a_print_is_nobody() -> None:
    assert people([Voice((), 0.3), voice(0, 5)], same_voice_distance=0.5, min_speaker_seconds=0) == [None, 0]
    assert people([Voice((), 0.3)], same_voice_distance=0.5, min_speaker_seconds=0) == [None]
    assert people([], same_voice_distance=0.5, min_speaker_seconds=0) == []


def test_linkage_is_the_mean_over_pairs_by_weight() -> None:
    # The first two are joined; the third is at 0.4 and 1.0 of them: 0.55 by weight, 0.7 without.
    distances = np.array([[0.0, 0.1, 0.4], [0.1, 0.0, 1.0], [0.4, 1.0, 0.0]])
    assert len(set(agglomerated(distances, [3, 1, 1], limit=0.6))) == 1
    assert len(set(agglomerated(distances, [1, 1, 1], limit=0.6))) == 2
    assert distances[0, 0] == 0.0, "the caller's matrix is not touched"


def test_what_is_infinitely_far_is_never_joined() -> None:
    assert len(set(agglomerated(np.full((3, 3), np.inf), [1, 1, 1], limit=None, count=1))) == 3


def test_the_mean_print_leans_to_who_is_heard_longer() -> None:
    centre = mean_print(np.eye(2), np.array([3.0, 1.0]))
    assert np.linalg.norm(centre) == pytest.approx(1.0)
    assert centre[0] == pytest.approx(3 * centre[1])


def part(turns: list[tuple[float, float, int]], voices: list[Voice]) -> Diarized:
    return Diarized("w", tuple(LocalTurn(*turn) for turn in turns), tuple(one.print for one in voices))


RULES = Rules(min_turn_seconds=0.5, same_voice_distance=0.3, min_speaker_seconds=3.0)
SPLIT = part(
    [(0, 9, 0), (10, 18, 1), (19, 26, 2), (26.5, 27.4, 3), (29, 36, 1)],
    [voice(0, 0), voice(1, 0), voice(0, 0, drift=0.5), Voice((), 0)],
)
"""Four clusters of two people: one of them twice, and a moment of hers that was too short for a print."""


def test_a_window_s_clusters_are_joined_to_people() -> None:
    assert [turn.speaker for turn in joined([(0.0, SPLIT)], RULES, None)] == ["S1", "S2", "S1", "S1", "S2"]


def test_without_a_distance_the_clusters_are_the_people() -> None:
    turns = joined([(0.0, SPLIT)], Rules(min_turn_seconds=0.5), None)
    assert len({turn.speaker for turn in turns}) == 4


def test_a_given_number_overrules_the_distance() -> None:
    assert {turn.speaker for turn in joined([(0.0, SPLIT)], RULES, 1)} == {"S1"}
    assert len({turn.speaker for turn in joined([(0.0, SPLIT)], RULES, 3)}) == 3


def test_a_recording_of_prints_too_short_to_compare_keeps_its_clusters() -> None:
    mute = part([(0, 1, 0), (2, 3, 1)], [Voice((), 0), Voice((), 0)])
    assert joined([(0.0, mute)], RULES, None) == [SpeakerTurn(0, 1, "S1"), SpeakerTurn(2, 3, "S2")]
