"""What sounds alike: the places of a text that may have been a glossary term."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech import homophones
from speech.homophones import Candidate, Index, similarity, skeleton, sound

TERMS = [
    *("千问", "通义千问", "SenseVoice", "sherpa-onnx", "向量数据库", "灰度发布"),
    *("Kubernetes", "王建国", "杭州智谱", "提示词", "MLX", "Qwen3-ASR"),
]
GLOSSARY = [(term, ()) for term in TERMS]
CACHES = (homophones.sound, homophones._sounds)


def candidates(text: str, terms: Sequence[tuple[str, Sequence[str]]], *, threshold: float = 0.78) -> list[Candidate]:
    """The best place of each term."""
    found: dict[str, Candidate] = {}
    for candidate in Index(terms).candidates(text, threshold=threshold):
        found.setdefault(candidate.term, candidate)
    return list(found.values())


@pytest.mark.parametrize(
    ("text", "term", "heard"),
    [
        ("我们用前问做检索", "千问", "前问"),
        ("向亮数据库的检索", "向量数据库", "向亮数据库"),
        ("会度发布之后看一下", "灰度发布", "会度发布"),
        ("让王建过看一下", "王建国", "王建过"),
        ("提示辞要改", "提示词", "提示辞"),
        ("we restart kubernetis pods", "Kubernetes", "kubernetis"),
        ("the sense voice model", "SenseVoice", "sense voice"),
        ("装 Sherpa onyx 了", "sherpa-onnx", "Sherpa onyx"),
        ("the qwen3 asr model", "Qwen3-ASR", "qwen3 asr"),
    ],
)
def test_a_misheard_term_is_found_where_it_stands(text: str, term: str, heard: str) -> None:
    (found,) = candidates(text, GLOSSARY)
    assert (found.term, found.heard) == (term, heard)
    assert text[found.start : found.end] == heard
    assert found.similarity >= 0.78


@pytest.mark.parametrize("text", ["今天天气不错我们去吃饭", "the meeting is on friday", "", "，。"])
def test_other_text_has_no_candidates(text: str) -> None:
    assert candidates(text, GLOSSARY) == []


def test_a_term_inside_another_word_is_not_there() -> None:
    assert [c.heard for c in candidates("an array of rey tracing", [("ray", ())], threshold=0.6)] == ["rey"]


def test_every_place_of_a_term_is_found() -> None:
    found = Index(GLOSSARY).candidates("前问和千文", threshold=0.9)
    assert {(c.heard, c.start) for c in found if c.term == "千问"} == {("前问", 0), ("千文", 3)}


@pytest.mark.parametrize("text", ["Kuber. netes", "Kuber, netes", "Kuber。netes", "通义，千问"])
def test_a_pause_divides_what_was_heard(text: str) -> None:
    assert all(text != candidate.heard for candidate in candidates(text, GLOSSARY))


@pytest.mark.parametrize(
    ("one", "other"),
    [("кот", "Кот"), ("쿠버네티스", "쿠버네티즈"), ("café", "CAFE"), ("γάτες", "γάτας"), ("サーバ", "サーバー")],
)
def test_words_of_any_script_are_compared_by_their_letters(one: str, other: str) -> None:
    assert similarity(one, other) >= 0.75


@pytest.mark.parametrize("text", ["🚀", "。", "", "_"])
def test_what_has_no_sound_is_like_nothing(text: str) -> None:
    assert similarity(text, text) == 0.0
    assert candidates(text, [("", ()), ("🚀", ())], threshold=0.0) == []


def test_only_what_is_allowed_is_compared() -> None:
    index = Index(GLOSSARY)
    assert index.candidates("用前问", threshold=0.78, allowed=lambda start, end: start != 1) == []


def test_a_transliteration_is_found_by_its_alias_alone() -> None:
    text = "库伯内提斯集群要扩容"
    assert candidates(text, [("Kubernetes", ())]) == []
    (found,) = candidates(text, [("Kubernetes", ("库伯内提斯",))])
    assert (found.term, found.heard, found.similarity) == ("Kubernetes", "库伯内提斯", 1.0)


def test_the_most_alike_come_first() -> None:
    found = candidates("kubernetis 和前问", [("Kubernetes", ()), ("千问", ())])
    assert [candidate.term for candidate in found] == ["千问", "Kubernetes"]
    assert found[0].similarity > found[1].similarity


@pytest.mark.parametrize(
    ("one", "other"), [("知", "资"), ("吃", "次"), ("是", "四"), ("行", "新"), ("老", "脑"), ("湖", "福")]
)
def test_confusable_syllables_have_one_key(one: str, other: str) -> None:
    assert sound(one) == sound(other)


@pytest.mark.parametrize(("one", "other"), [("grafana", "graphana"), ("quick", "kwik"), ("hello", "hallo")])
def test_words_spelt_as_they_sound_have_one_skeleton(one: str, other: str) -> None:
    assert skeleton(one) == skeleton(other)


@given(st.text("千问向量数据库ab cX3", max_size=12), st.text("前文像两书剧裤ab dX3", max_size=12))
def test_similarity_is_symmetric_and_between_0_and_1(one: str, other: str) -> None:
    assert 0.0 <= similarity(one, other) <= 1.0
    assert similarity(one, other) == pytest.approx(similarity(other, one))


@given(st.text("千问向量数据库abcx", min_size=1, max_size=12))
def test_text_sounds_like_itself(text: str) -> None:
    assert similarity(text, text) == 1.0


def test_terms_are_made_ready_once() -> None:
    """500 terms and 30 s of speech: 5 s when every term was looked up by itself."""
    index = Index([(f"{one}{other}", ()) for one in "千王向灰杭提" for other in "问建量度州示"] + GLOSSARY)
    text = "会度发布之后让王建过看一下向亮数据库的前问"
    first = index.candidates(text, threshold=0.78)
    looked_up = [cache.cache_info().misses for cache in CACHES]
    assert index.candidates(text, threshold=0.78) == first
    assert [cache.cache_info().misses for cache in CACHES] == looked_up, "no sound is made twice"
