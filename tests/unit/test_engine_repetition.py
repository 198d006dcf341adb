"""When an answer repeats itself without end, and when it only seems to."""

from __future__ import annotations

import random

import pytest

from engine.worker.answers.repetition import LONGEST_PERIOD, REPEATS, SHORTEST_RUN, Repetition


def stops_at(tokens: list[int]) -> int | None:
    repetition = Repetition()
    return next((i for i, token in enumerate(tokens, 1) if repetition.found(token)), None)


@pytest.mark.parametrize("period", [1, 2, 7, 24, 25, LONGEST_PERIOD])
def test_a_piece_said_over_and_over_ends_the_answer(period: int) -> None:
    head, piece = list(range(1000, 1100)), list(range(period))
    assert stops_at(head + piece * 400) == len(head) + period + max(SHORTEST_RUN, REPEATS * period)


def test_a_longer_piece_a_table_and_random_text_do_not() -> None:
    draw = random.Random(1)
    assert stops_at(list(range(LONGEST_PERIOD + 1)) * 20) is None
    assert stops_at([token for row in range(300) for token in (1, 2, 3, 1000 + row, 4)]) is None
    assert stops_at([draw.randrange(4) for _ in range(20_000)]) is None
    assert stops_at([7] * SHORTEST_RUN) is None  # the first one repeats nothing
