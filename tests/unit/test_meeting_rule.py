"""Correction by sound alone."""

from __future__ import annotations

import pytest

from pipelines.glossary import Term
from pipelines.meeting.review.edits import apply
from pipelines.meeting.review.rule import by_sound

TERMS = (Term("知识蒸馏"), Term("grafana"), Term("幂等", ("密等",)))


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        ("今天讨论只是蒸馏。", "今天讨论知识蒸馏。"),
        ("check the graphana alert.", "check the grafana alert."),
        ("接口要密等。", "接口要幂等。"),
        ("今天讨论知识蒸馏。", "今天讨论知识蒸馏。"),
        ("我们明天再讨论预算。", "我们明天再讨论预算。"),
        ("the customer wants a discount.", "the customer wants a discount."),
    ],
)
def test_what_sounds_like_a_term_becomes_it_and_nothing_else_changes(heard: str, expected: str) -> None:
    corrected, decisions = apply(heard, by_sound(heard, TERMS), {term.text for term in TERMS}, by="rule")
    assert corrected == expected
    assert all(decision.by == "rule" for decision in decisions)


def test_an_empty_glossary_changes_nothing() -> None:
    assert by_sound("今天讨论只是蒸馏。", ()) == []
