"""What the embedded review model is taught: the pipeline's own requests, and answers that the pipeline can use."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path

import pytest

import models
from pipelines.clients import Reviewer
from pipelines.glossary import Term
from pipelines.meeting import summarize
from pipelines.meeting.review import prompts
from pipelines.meeting.review.windows import corrected
from training import held_out
from training.evaluate import review as evaluate_review
from training.review import examples, talk
from training.review.misheard import Place, places, respelt

SAID, HEARD = "请检查知识蒸馏的日志。", "请检查知识争流的日志。"


def misheard(said: str, heard: str) -> set[Place]:
    rng = random.Random(1)
    return {place for _ in range(40) for place in places(said, heard, rng, wrong=True)}


def test_requests_of_the_training_are_those_of_the_pipeline() -> None:
    assert examples.ask_review is prompts.ask_review
    assert examples.ask_summary is summarize.ask_summary
    assert examples.PROMPTS == (prompts.REVIEW_SYSTEM, summarize.SUMMARY_SYSTEM)


def test_the_card_asks_for_no_more_than_what_is_trained() -> None:
    card = tomllib.loads((models.EMBEDDED / "duet-tiny-chat.toml").read_text(encoding="utf-8"))
    reviewer = Reviewer("duet-tiny-chat", **card["review"])
    assert (reviewer.window_segments, reviewer.context_segments) == (1, 0)
    assert reviewer.glossary_terms <= examples.GLOSSARY_TERMS


def test_an_answer_of_the_training_corrects_the_text_in_the_pipeline() -> None:
    terms = [Term("知识蒸馏"), Term("幂等")]
    messages = prompts.ask_review([], [("s0007", HEARD)], [], terms, glossary_terms=examples.GLOSSARY_TERMS)
    example = examples._with_edits(messages, "s0007", HEARD, [Place("知识蒸馏", "知识争流")])
    proposals = prompts.read_review(example.answer, [("s0007", HEARD)])["s0007"]
    assert corrected(HEARD, proposals, terms, rule=False).text == SAID
    assert set(example.marked) == {"知识蒸馏", "知识争流"}
    nothing = examples._with_edits(messages, "s0007", SAID, [])
    assert prompts.read_review(nothing.answer, [("s0007", SAID)]) == {}


def test_a_misheard_place_is_found_with_what_was_meant() -> None:
    found = misheard(SAID, HEARD)
    assert Place("蒸馏", "争流") in found
    assert all(HEARD.replace(place.heard, place.said, 1) == SAID for place in found)
    assert misheard(SAID, SAID) == set()


@pytest.mark.parametrize(
    ("said", "heard"),
    [("我们不同意。", "我们部同意。"), ("定在十五点开会。", "定在四五点开会。"), ("先看窗户。", "先看桌子。")],
)
def test_nothing_that_the_guard_refuses_is_taught(said: str, heard: str) -> None:
    """A negation, a number, and what does not sound alike."""
    for place in misheard(said, heard):
        assert (
            corrected(heard, [prompts.Proposal(place.heard, place.said)], [Term(place.said)], rule=False).text != heard
        )
    assert not any(
        "不" in place.said or "十五" in place.said or place.said == "窗户" for place in misheard(said, heard)
    )


def test_a_word_is_respelt_by_its_sound() -> None:
    rng = random.Random(2)
    found = {respelt("graphana", rng) for _ in range(60)}
    assert len(found) > 5
    assert any("f" in word for word in found)


def test_chat_and_evaluation_have_nothing_of_the_frozen_set() -> None:
    taught = [text for turn in talk.CHAT for text in turn]
    asked = [question for questions in evaluate_review.QUESTIONS.values() for question in questions]
    assert all(held_out.allowed(text) for text in (*taught, *asked, *(line[2] for line in evaluate_review.LINES)))
    assert not {question for question, _ in talk.CHAT} & set(asked)


def test_a_bank_with_a_sentence_of_the_evaluation_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0001.jsonl").write_text('{"language": "zh", "said": "甲乙丙", "heard": "假以饼"}\n', encoding="utf-8")
    assert examples.read_bank(tmp_path) == [examples.Pair("甲乙丙", "假以饼")]
    monkeypatch.setattr(held_out, "allowed", lambda text: text != "甲乙丙")
    with pytest.raises(ValueError, match="1 sentences of the evaluation"):
        examples.read_bank(tmp_path)


def test_the_evaluation_asks_with_terms_that_are_said_and_with_terms_that_nobody_says() -> None:
    pairs = [
        examples.Pair(SAID, HEARD),
        examples.Pair("备份数据仓库。", "备份树具仓库。"),
        examples.Pair("用模型网关。", "用魔形网关。"),
    ]
    found = evaluate_review.manifest(pairs, ["树具仓库", "仓库", "混沌测试"], random.Random(3))
    assert [utterance.text for utterance in found.utterances] == [pair.said for pair in pairs]
    assert all(utterance.terms and set(utterance.terms) <= set(utterance.glossary) for utterance in found.utterances)
    assert sorted(found.absent) == ["树具仓库", "混沌测试"]
