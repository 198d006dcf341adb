"""Error rates against values worked out by hand."""

from __future__ import annotations

import itertools
import math

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet.wire import SpeakerTurn
from speech.metrics import ErrorCounts, cer, der, mer

# Text -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("我们讨论数据库", "我们讨论数据裤", ErrorCounts(1, 0, 0, 7)),
        ("我们讨论", "我们讨", ErrorCounts(0, 0, 1, 4)),
        ("我们", "我们们", ErrorCounts(0, 1, 0, 2)),
        ("abc def", "abcd ef", ErrorCounts(0, 0, 0, 6)),
        ("Hello, World!", "hello world", ErrorCounts(0, 0, 0, 10)),
        ("", "", ErrorCounts()),
        ("", "你好", ErrorCounts(0, 2, 0, 0)),
        ("你好", "", ErrorCounts(0, 0, 2, 2)),
    ],
)
def test_character_errors(reference: str, hypothesis: str, counts: ErrorCounts) -> None:
    assert cer(reference, hypothesis) == counts


def test_mixed_errors_count_a_word_once() -> None:
    assert mer("部署 kubernetes 集群", "部署 cubernets 集群") == ErrorCounts(1, 0, 0, 5)


def test_rates_add_up_over_sentences() -> None:
    total = cer("你好", "你") + cer("今天天气", "今天天气")
    assert total.rate == pytest.approx(1 / 6)


def test_an_empty_reference_is_no_division_by_zero() -> None:
    assert cer("", "").rate == 0.0
    assert cer("", "你好").rate == 2.0


@given(st.text("abc我们", min_size=1, max_size=20), st.text("abd我他", max_size=20))
def test_the_rate_is_that_of_jiwer(reference: str, hypothesis: str) -> None:
    assert cer(reference, hypothesis).rate == pytest.approx(float(jiwer.cer(reference, hypothesis)))


# Diarization ------------------------------------------------------------------------------------------------------------


def turns(*spoken: tuple[float, float, str]) -> list[SpeakerTurn]:
    return [SpeakerTurn(*turn) for turn in spoken]


REFERENCE = turns((0, 10, "A"), (10, 20, "B"))


@pytest.mark.parametrize(
    ("hypothesis", "expected"),
    [
        (turns((0, 10, "x"), (10, 20, "y")), 0.0),
        (turns((0, 10, "B"), (10, 20, "A")), 0.0),  # names mean nothing
        (turns((0, 20, "x")), 0.5),  # confusion
        (turns((0, 10, "x")), 0.5),  # missed
        (turns((0, 10, "x"), (10, 20, "y"), (20, 25, "y")), 0.25),  # false alarm
        (turns((0, 12, "x"), (12, 20, "y")), 0.1),
        (turns((0, 10, "x"), (0, 10, "z"), (10, 20, "y")), 0.5),  # two heard where one spoke
        ([], 1.0),
    ],
)
def test_diarization_errors_without_a_collar(hypothesis: list[SpeakerTurn], expected: float) -> None:
    assert der(REFERENCE, hypothesis, collar_seconds=0.0).rate == pytest.approx(expected, abs=1e-9)


def test_overlapping_speech_counts_for_each_speaker() -> None:
    reference = turns((0, 10, "A"), (5, 10, "B"))
    assert der(reference, turns((0, 10, "x")), collar_seconds=0.0).rate == pytest.approx(5 / 15)


def test_the_collar_forgives_what_is_near_a_boundary() -> None:
    early = turns((0.2, 9.8, "x"), (9.8, 20.2, "y"))
    assert der(REFERENCE, early, collar_seconds=0.0).rate == pytest.approx(0.6 / 20)
    assert der(REFERENCE, early).rate == 0.0
    # 19 s of 20 are scored: 0.25 s after 0, 0.25 s on both sides of 10, 0.25 s before 20 are not.
    assert der(REFERENCE, turns((0, 11, "x"), (11, 20, "y"))).rate == pytest.approx(0.75 / 19)


def test_the_mapping_is_the_best_and_not_the_greedy_one() -> None:
    reference = turns((0, 4, "A"), (4, 7, "A"), (7, 10, "B"))
    # A and x share most (4 s), which would leave B and y with nothing; A with y and B with x agree for 6 s.
    hypothesis = turns((0, 4, "x"), (4, 7, "y"), (7, 10, "x"))
    assert der(reference, hypothesis, collar_seconds=0.0).rate == pytest.approx(0.4)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=30))
def test_the_mapping_equals_trying_all(frames: list[tuple[int, int]]) -> None:
    reference = [SpeakerTurn(i, i + 1.0, f"r{spoken}") for i, (spoken, _) in enumerate(frames)]
    hypothesis = [SpeakerTurn(i, i + 1.0, f"h{heard}") for i, (_, heard) in enumerate(frames)]
    best = max(
        sum(mapping[spoken] == heard for spoken, heard in frames) for mapping in itertools.permutations(range(6), 5)
    )
    assert der(reference, hypothesis, collar_seconds=0.0).rate == pytest.approx(1 - best / len(frames))


def test_many_speakers_on_one_side_are_mapped_at_once() -> None:
    reference = turns(*((i, i + 1.0, f"r{i % 8}") for i in range(40)))
    hypothesis = turns(*((i, i + 1.0, f"h{i}") for i in range(40)))
    assert der(reference, hypothesis, collar_seconds=0.0).rate == pytest.approx(32 / 40)


def test_too_many_speakers_on_both_sides_are_refused() -> None:
    crowd = turns(*((i, i + 1.0, f"s{i}") for i in range(13)))
    with pytest.raises(ValueError, match="more than 12 speakers"):
        der(crowd, crowd, collar_seconds=0.0)


def test_a_silent_reference() -> None:
    assert der([], []).rate == 0.0
    assert der([], turns((0, 1, "x"))).rate == math.inf
