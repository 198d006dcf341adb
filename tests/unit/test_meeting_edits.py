"""What a reviewer proposes is applied only where it can do no harm."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.meeting.review.draft import Draft
from pipelines.meeting.review.edits import Decision, Proposal, Refusal, Words, apply

GLOSSARY = frozenset({"知识蒸馏", "灰度发布", "Kubernetes", "多租户"})


def edited(
    text: str, *proposals: tuple[str, str], terms: frozenset[str] = GLOSSARY, around: str = ""
) -> tuple[str, list[Decision]]:
    draft = Draft(text)
    decisions = apply(draft, [Proposal(*pair) for pair in proposals], Words(terms, f"{text} {around}"))
    return draft.text, decisions


@pytest.mark.parametrize(
    ("text", "source", "target"),
    [
        ("今天讨论知识争流", "知识争流", "知识蒸馏"),
        ("会度发布之后再看", "会度发布", "灰度发布"),
        ("讨论知成六。", "知成六", "知识蒸馏"),
        ("谁来跟进多足户的文档", "多足户", "多租户"),
        ("we run cubernetes here", "cubernetes", "Kubernetes"),
        ("嗯我们开始", "嗯", ""),
    ],
)
def test_a_misheard_term_is_corrected(text: str, source: str, target: str) -> None:
    corrected, (decision,) = edited(text, (source, target))
    assert decision.accepted, decision.reason
    assert corrected == text.replace(source, target)


@pytest.mark.parametrize(
    ("text", "source", "target", "reason"),
    [
        ("今天讨论模型", "数据", "知识蒸馏", "not in the segment"),
        ("今天讨论模型", "模型", "模型", "nothing would change"),
        ("预算是30万", "30万", "50万", "number"),
        ("需要三天", "三天", "五天", "number"),
        ("it takes two days", "two", "ten", "number"),
        ("这个方案不行", "不行", "可行", "negation"),
        ("it is not ready", "not ready", "ready", "negation"),
        ("我们下周发布", "下周", "知识蒸馏", "sound alike"),
        ("我们下周发布", "发布", "上线", "sound alike"),
        ("会议推迟", "推迟", "推迟了请大家准时参加", "inserted"),
        ("我们昨天测试了模型很稳定", "昨天测试了模型", "", "deleted"),
        ("我们昨天测试了", "昨天", "", "deleted"),
        ("讨论知是整流", "知是整流", "知识蒸lo", "scripts would be mixed"),
    ],
)
def test_a_harmful_edit_is_refused_with_its_reason(text: str, source: str, target: str, reason: str) -> None:
    unchanged, (decision,) = edited(text, (source, target))
    assert unchanged == text
    assert not decision.accepted
    assert reason in decision.reason


def test_not_too_much_of_a_segment_changes() -> None:
    text = "他门在谈论会意的内荣"
    proposals = [("他门", "他们"), ("会意", "会议"), ("内荣", "内容")]
    corrected, decisions = edited(text, *proposals, terms=frozenset())
    assert [decision.accepted for decision in decisions] == [True, False, False]
    assert corrected == "他们在谈论会意的内荣"


@given(st.text("cat Kat密等秘.-_'1", max_size=30), st.text("cat密等", max_size=4), st.text("Kat幂等", max_size=4))
def test_any_proposal_is_decided_and_refused_ones_change_nothing(text: str, source: str, target: str) -> None:
    corrected, decisions = edited(text, (source, target))
    accepted = [decision for decision in decisions if decision.accepted]
    assert decisions
    assert all(decision.reason for decision in decisions if not decision.accepted)
    assert all(text[decision.start : decision.end] == source for decision in accepted)
    rebuilt, done = "", 0
    for decision in accepted:
        rebuilt += text[done : decision.start] + target
        done = decision.end or 0
    assert corrected == rebuilt + text[done:]


@pytest.mark.parametrize(
    ("text", "source", "target", "expected"),
    [
        ("please concatenate the cat", "cat", "Kat", "please concatenate the Kat"),
        ("cat, cat's; cats cat", "cat", "Kat", "Kat, Kat's; cats Kat"),
        ("CamelCat cat_id cat2 2cat cat", "cat", "Kat", "CamelCat cat_id cat2 2cat Kat"),
        ("don't don", "don", "Don", "don't Don"),
        ("rock.cat cat.js cat@home cat. Cat", "cat", "Kat", "rock.cat cat.js cat@home Kat. Cat"),
        ("用cat写cat。", "cat", "Kat", "用Kat写Kat。"),
        ("котик и кот", "кот", "Кот", "котик и Кот"),
        ("γάτες γάτε", "γάτε", "γάτα", "γάτες γάτα"),
        ("密等的秘密等人来密等", "密等", "幂等", "幂等的秘密等人来幂等"),
        ("战争的争流", "争", "蒸", "战争的蒸流"),
        ("umbrella um", "um", "", "umbrella "),
        ("金额额度额", "额", "", "金额额度"),
        ("金额额度", "额", "", "金额额度"),
    ],
)
def test_an_edit_is_of_every_whole_word(text: str, source: str, target: str, expected: str) -> None:
    assert edited(text, (source, target), terms=frozenset({"幂等", "Кот", "Kat"}))[0] == expected


def test_a_term_that_is_an_ordinary_word_needs_the_model_and_company() -> None:
    terms = frozenset({"Rust", "Kubernetes"})
    said = "we wrote it in rest"
    assert edited(said, ("rest", "Rust"), terms=terms)[0] == said
    assert edited(said, ("rest", "Rust"), terms=terms, around="it runs on Kubernetes")[0] == "we wrote it in Rust"
    assert edited("rust is nice", ("rust", "Rust"), terms=terms)[0] == "Rust is nice"


ONE_OF_EACH = {
    Refusal.ABSENT: ("今天讨论模型", "数据", "知识蒸馏"),
    Refusal.SAME: ("今天讨论模型", "模型", "模型"),
    Refusal.INSERTED: ("今天讨论模型", "模型", "模型和数据的事"),
    Refusal.DELETED: ("今天讨论模型和数据", "讨论模型和数据", "讨"),
    Refusal.ERASED: ("今天讨论模型", "讨论", ""),
    Refusal.NUMBER: ("预算是30万", "30万", "50万"),
    Refusal.NEGATION: ("这个方案不行", "不行", "可行"),
    Refusal.SCRIPTS: ("今天讨论模型", "模型", "模x"),
    Refusal.SOUND: ("今天讨论模型", "模型", "苹果"),
    Refusal.INSIDE: ("please concatenate", "cat", "Kat"),
    Refusal.ORDINARY: ("take a rest", "rest", "Rust"),
    Refusal.SEGMENT: ("讨论模型", "讨论模型", "淘论魔型"),
}


@pytest.mark.parametrize("refusal", Refusal)
def test_every_refusal_occurs_and_is_in_the_documents(refusal: Refusal) -> None:
    text, source, target = ONE_OF_EACH[refusal]
    corrected, (decision,) = edited(text, (source, target), terms=GLOSSARY | {"Rust"})
    assert (corrected, decision.accepted) == (text, False)
    assert decision.reason.partition(" (")[0] == refusal
    page = Path(__file__).parents[2] / "docs" / "architecture.md"
    assert f"| {refusal} |" in page.read_text(encoding="utf-8")
