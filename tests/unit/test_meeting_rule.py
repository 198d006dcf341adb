"""Correction without a model: aliases are the user's word, and sounds count where nobody would say what was heard."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.glossary import Term, parse
from pipelines.meeting.review.windows import corrected

TERMS = (Term("知识蒸馏"), Term("grafana"), Term("幂等", ("密等",)), Term("Kubernetes", ("库伯内提斯", "cube net")))
GLOSSARY = tuple(Term(line) for line in (Path(__file__).parent / "terms.txt").read_text(encoding="utf-8").splitlines())


def by_rule(text: str, terms: tuple[Term, ...] = TERMS, language: str | None = None) -> str:
    return corrected(text, [], terms, language=language).text


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        ("今天讨论只是蒸馏。", "今天讨论知识蒸馏。"),
        ("check the graphana alert.", "check the grafana alert."),
        ("Graphana, then graphana again", "grafana, then grafana again"),
        ("our cubernetes-based graphana's board", "our Kubernetes-based grafana's board"),
        ("用graphana写的cubernetes集群", "用grafana写的Kubernetes集群"),
        ("接口要密等。", "接口要幂等。"),
        ("库伯内提斯集群，库伯内提斯", "Kubernetes集群，Kubernetes"),
        ("Cube  Net and cube nets", "Kubernetes and cube nets"),
        ("今天讨论知识蒸馏，不是知识争流。", "今天讨论知识蒸馏，不是知识蒸馏。"),
        ("秘密等我们去发现", "秘密等我们去发现"),
        ("今天讨论知识蒸馏。", "今天讨论知识蒸馏。"),
        ("我们明天再讨论预算。", "我们明天再讨论预算。"),
        ("the customer wants a discount.", "the customer wants a discount."),
        ("check the gra. Fana alert", "check the gra. Fana alert"),
    ],
)
def test_what_sounds_like_a_term_becomes_it_and_nothing_else_changes(heard: str, expected: str) -> None:
    assert by_rule(heard) == expected


def test_an_empty_glossary_changes_nothing() -> None:
    assert by_rule("今天讨论只是蒸馏。", ()) == "今天讨论只是蒸馏。"


@pytest.mark.parametrize(
    ("said", "term"),
    [
        *(("the view is slow and we just have a sure rest", term) for term in ("SLO", "Vue", "Jest", "Hive", "SRE", "Rust")),
        *(("we need to go now because the queen will rest", term) for term in ("Go", "Qwen", "Rust")),
        *(("I slowed down, they were just resting, viewing hives", term) for term in ("SLO", "Vue", "Jest", "Rust", "Hive")),
        *(("I mean that she sparked a swift reaction", term) for term in ("Shaun", "Spark", "Swift", "React")),
        *(("the nodes know that pandas note it", term) for term in ("Node", "Pandas", "Notion")),
        *(("a work day with an air flow", term) for term in ("Workday", "Airflow")),
        *(("实施方案的权力和公式形式", term) for term in ("实时", "权利", "攻势", "行事", "形势")),
        *(("意义是事件，机制的效应", term) for term in ("异议", "试件", "极致", "小英")),
        *(("他前天问我三天前问过谁", term) for term in ("千问", "钱文")),
        *(("實施權力", term) for term in ("实时", "权利")),
        ("im Wald ist es schlau und lau", "SLO"),
        ("elle veut le reste juste", "Rust"),
        ("el resto justo", "Jest"),
    ],
)  # fmt: skip
def test_an_ordinary_word_is_never_a_term_by_its_sound(said: str, term: str) -> None:
    for language in (None, "en", "zh", "de", "fr", "es", "pl"):
        assert by_rule(said, (Term(term),), language) == said


@pytest.mark.parametrize("language", ["pl", "tr", "vi", "xx"])
def test_nothing_is_judged_by_sound_in_a_language_without_a_list(language: str) -> None:
    assert by_rule("system graphana działa", TERMS, language) == "system graphana działa"
    assert by_rule("system cube net działa", TERMS, language) == "system Kubernetes działa"


@pytest.mark.parametrize(
    ("line", "heard", "expected"),
    [
        ("Rust | rest", "Rest is in rest, not in unrest or rests", "Rust is in Rust, not in unrest or rests"),
        ("ClickHouse | click house", "click house, Click House's and click\nhouse", "ClickHouse, ClickHouse's and ClickHouse"),
        ("Kat | cat", "concatenate the cat: cats, my_cat, cat5, cat's", "concatenate the Kat: cats, my_cat, cat5, Kat's"),
        ("ART | art", "state-of-the-art art", "state-of-the-art ART"),
        ("Data Studio | data", "Data Studio has data", "Data Studio has Data Studio"),
        ("Кот | кот", "который кот", "который Кот"),
        ("Kubernetes | 쿠버네티스", "쿠버네티스를 배포", "Kubernetes를 배포"),
        ("나 | 사", "사과", "사과"),
        ("サーバ | サバ", "サバサバ サバ", "サバサバ サバ".replace(" サバ", " サーバ")),
        ("C | see", "see C++ and C#", "C C++ and C#"),
        ("Qwen3 | q when three", "q when three", "Qwen3"),
        ("A | B", "B A B", "A A A"),
    ],
)  # fmt: skip
def test_an_alias_is_the_user_s_word_wherever_it_is_a_word(line: str, heard: str, expected: str) -> None:
    assert by_rule(heard, parse(line)) == expected


@given(
    st.lists(
        st.sampled_from(["the view is slow", "just cat", "concatenate", "知识争流", "graphana", "密等", "🚀", "\n"])
    )
)
def test_edits_say_where_they_are(pieces: list[str]) -> None:
    heard = " ".join(pieces)
    found = corrected(heard, [], (*TERMS, Term("Kat", ("cat",))))
    assert all(heard[edit.start : edit.end] == edit.source for edit in found.decisions if edit.accepted)
    assert [found.text[start:end] for start, end in found.changed] == [
        edit.target for edit in sorted(found.decisions, key=lambda edit: edit.start or 0) if edit.accepted
    ]
    outside, end_before = "", 0
    for start, end in found.changed:
        outside, end_before = outside + found.text[end_before:start], end
    kept, end_before = "", 0
    for edit in sorted((edit for edit in found.decisions if edit.accepted), key=lambda edit: edit.start or 0):
        kept, end_before = kept + heard[end_before : edit.start], edit.end or 0
    assert outside + found.text[found.changed[-1][1] if found.changed else 0 :] == kept + heard[end_before:]
