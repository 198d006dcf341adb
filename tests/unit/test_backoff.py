"""When a program is started again, and when it rests: for every history of endings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from duet.supervise.backoff import (
    CRASHES_IN_A_ROW,
    EXIT_FINAL,
    HEALTHY_SECONDS,
    LONGEST_REST_SECONDS,
    Endings,
    rest_seconds,
)  # fmt: skip

CODES = st.sampled_from([0, 1, 2, 3, 78, 127, -6, -9, -11])
RUNS = st.lists(st.tuples(CODES, st.floats(0, 200)), min_size=1, max_size=30)


def test_rests_grow_and_have_an_end() -> None:
    assert [rest_seconds(number) for number in range(1, 8)] == [30, 60, 120, 240, 480, 600, 600]
    assert rest_seconds(10_000) == LONGEST_REST_SECONDS


@given(RUNS)
def test_no_history_keeps_a_program_away_for_ever_or_restarts_it_without_end(runs: list[tuple[int, float]]) -> None:
    endings, quick = Endings(), 0
    for number, (code, lived) in enumerate(runs, 1):
        pause = endings.add(code, lived)
        assert 0 <= pause <= LONGEST_REST_SECONDS
        quick = 1 if lived >= HEALTHY_SECONDS else quick + 1
        if endings.resting:
            assert pause >= 30
        else:
            assert quick < CRASHES_IN_A_ROW
            assert code not in EXIT_FINAL
        assert endings.never_ran == all(seconds < 10 for _, seconds in runs[:number])


@given(RUNS)
def test_a_long_run_forgives_everything_before_it(runs: list[tuple[int, float]]) -> None:
    endings = Endings()
    for code, lived in runs:
        endings.add(code, lived)
    assert endings.add(1, HEALTHY_SECONDS) == 0
    assert (endings.failures, endings.resting) == (1, False)


def test_who_cannot_start_is_not_tried_five_times_and_who_crashes_later_is() -> None:
    assert Endings().add(1, 3.0) == 30
    assert Endings().add(1, 12.0) == 0
    assert Endings().add(-11, 3.0) == 0
    crashing = Endings()
    assert [crashing.add(-11, 20.0) for _ in range(7)] == [0, 0.5, 1, 2, 30, 60, 120]
