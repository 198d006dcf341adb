"""Where words begin and end, and which ones are ordinary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.meeting.review.draft import Draft
from speech.words import cuts_word, inside, is_common, is_listed, languages, mentions, occurrences


@pytest.mark.parametrize(
    ("text", "term", "said"),
    [
        ("we maintain it", "AI", False),
        ("it is slow", "SLO", False),
        ("our slo is 99", "SLO", True),
        ("an AI model", "AI", True),
        ("用React写", "React", True),
        ("click  house", "click house", True),
        ("click\nhouse", "Click House", True),
        ("clickhouse", "click house", False),
        ("I go home", "Go", False),
        ("written in Go", "Go", True),
        ("rust and dust", "Rust", False),
        ("C++", "C", False),
        ("C", "C++", False),
        ("C++ code", "C++", True),
        ("ASP.NET", ".NET", False),
        ("the .NET team", ".NET", True),
        ("node.js", "Node.js", True),
        ("Kafka's topic", "kafka", True),
        ("kafka_topic", "Kafka", False),
        ("GPT4", "GPT", False),
        ("灰度发布了", "灰度发布", True),
        ("", "x", False),
        ("x", "", False),
    ],
)
def test_a_term_is_heard_as_whole_words(text: str, term: str, said: bool) -> None:
    assert mentions(text, term) is said


@pytest.mark.parametrize(
    ("text", "word", "found"),
    [
        ("日本語のサーバー、サーバ。", "サーバ", 1),
        ("ภาษาไทย", "ไทย", 1),
        ("Москва и москвич", "москв", 0),
        ("naïve na", "na", 1),
        ("e\u0301cole e", "e", 1),
        ("x-ray ray", "ray", 1),
        ("Kafka-based", "Kafka", 1),
        ("l'hôtel, dell’hôtel, x'hôtel", "hôtel", 2),
        ("O'Reilly o'clock don't", "Reilly", 0),
        ("click-house click house", "click house", 2),
        ("don't I'm it's", "t", 0),
        ("cat cat cat", "cat", 3),
        ("catcat", "cat", 0),
        ("(cat) [cat] «cat»", "cat", 3),
        ("cat/dog", "cat", 1),
        ("쿠버네티스를 쿠버네티스", "쿠버네티스", 2),
        ("나무", "나", 0),
    ],
)
def test_words_end_where_their_script_says(text: str, word: str, found: int) -> None:
    assert len(list(occurrences(text, word))) == found


@given(st.text("aB1_-'. 好京カ가й", max_size=12), st.data())
def test_a_place_is_inside_a_word_whatever_stands_far_away(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    assert inside(f"zz {text} zz", start + 3, end + 3) == inside(text, start, end)


@pytest.mark.parametrize(
    "word", ["slow", "Slowed", "resting", "viewed", "bigger", "stories", "实施", "權利", "don't", "it's"]
)
def test_ordinary_words_and_their_forms_are_known(word: str) -> None:
    assert is_common(word)


@pytest.mark.parametrize("word", ["Kubernetes", "graphana", "ClickHouse", "SLO", "幂等", "会度发布", "", "🚀"])
def test_names_are_no_ordinary_words(word: str) -> None:
    assert not is_common(word)


def test_a_word_is_looked_up_in_the_language_spoken_and_in_english() -> None:
    assert is_listed("Schlaue", "de")
    assert is_listed("slow", "de-AT")
    assert not is_listed("graphana", "de")
    assert languages("pl") == ()
    assert languages("zh") == languages(None) == languages("ru") == ("en",)


def test_chinese_is_cut_into_words() -> None:
    assert cuts_word("秘密等人", 1, 3)
    assert not cuts_word("接口密等", 2, 4)
    assert cuts_word("祕密等人", 1, 3), "traditional characters too"


@given(
    st.text("abc ", max_size=12),
    st.lists(st.tuples(st.integers(0, 14), st.integers(0, 4), st.text("XY", max_size=3)), max_size=6),
)
def test_a_draft_knows_what_it_replaced(heard: str, edits: list[tuple[int, int, str]]) -> None:
    draft = Draft(heard)
    for start, length, target in edits:
        if start + length <= len(draft.text):
            first, last = draft.replace(start, start + length, target)
            assert 0 <= first <= last <= len(heard)
    outside, done = "", 0
    for start, end in draft.changed:
        assert done <= start <= end <= len(draft.text)
        outside, done = outside + draft.text[done:start], end
    outside += draft.text[done:]
    assert "X" not in outside
    remaining = iter(heard)
    assert all(char in remaining for char in outside), "what is outside the changes stands as it was heard"
