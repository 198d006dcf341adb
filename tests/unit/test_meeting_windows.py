"""What the pipeline and the benchmark ask about together, and what they make of the answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.clients import Reviewer
from pipelines.glossary import Term
from pipelines.meeting.review.edits import Proposal
from pipelines.meeting.review.windows import Window, as_term, corrected, windows

LINES = [(f"s{i:04d}", f"text {i}") for i in range(1, 6)]


def test_windows_show_what_is_around_them() -> None:
    found = windows(LINES, Reviewer("m", window_segments=2, context_segments=1))
    assert found == [
        Window(tuple(LINES[0:2]), (), (LINES[2],)),
        Window(tuple(LINES[2:4]), (LINES[1],), (LINES[4],)),
        Window((LINES[4],), (LINES[3],), ()),
    ]


@given(st.integers(0, 40), st.integers(1, 9), st.integers(0, 9))
def test_every_segment_is_in_one_window(count: int, size: int, beside: int) -> None:
    lines = [(f"s{i:04d}", "x") for i in range(count)]
    found = windows(lines, Reviewer("m", window_segments=size, context_segments=beside))
    assert [line for window in found for line in window.lines] == lines
    assert all(len(window.before) <= beside and len(window.after) <= beside for window in found)


@pytest.mark.parametrize(
    ("rule", "text", "by"),
    [(True, "接口要知识蒸馏，用grafana。", ["model", "rule"]), (False, "接口要知识争流，用grafana。", ["model"])],
)
def test_the_rule_comes_after_the_model_or_not_at_all(rule: bool, text: str, by: list[str]) -> None:
    terms = (Term("知识蒸馏"), Term("grafana"))
    found = corrected("接口要知识争流，用graphana。", [Proposal("graphana", "grafana")], terms, rule=rule)
    assert found.text == text
    assert [decision.by for decision in found.decisions if decision.accepted] == by


def test_a_model_s_spelling_of_a_term_becomes_the_glossary_s() -> None:
    terms = [Term("知识蒸馏"), Term("Grafana", ("the dashboard",))]
    assert as_term(Proposal("知识争流", "知识增流"), terms) == Proposal("知识争流", "知识蒸馏")
    assert as_term(Proposal("graph anna", "the dashboard"), terms) == Proposal("graph anna", "Grafana")
    assert as_term(Proposal("知识争流", "知识蒸馏"), terms) == Proposal("知识争流", "知识蒸馏")
    assert as_term(Proposal("他门", "他们"), terms) == Proposal("他门", "他们")
    assert as_term(Proposal("他门", "他们"), []) == Proposal("他门", "他们")
