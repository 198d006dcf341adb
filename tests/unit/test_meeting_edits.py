"""What a reviewer proposes is applied only where it can do no harm."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.meeting.review.edits import Proposal, Refusal, apply, objection

GLOSSARY = {"知识蒸馏", "灰度发布", "Kubernetes", "多租户"}


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
    corrected, (decision,) = apply(text, [Proposal(source, target)], GLOSSARY)
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
    unchanged, (decision,) = apply(text, [Proposal(source, target)], GLOSSARY)
    assert unchanged == text
    assert not decision.accepted
    assert reason in decision.reason


def test_not_too_much_of_a_segment_changes() -> None:
    text = "他门在谈论会意的内荣"
    proposals = [Proposal("他门", "他们"), Proposal("会意", "会议"), Proposal("内荣", "内容")]
    corrected, decisions = apply(text, proposals, set())
    assert [decision.accepted for decision in decisions] == [True, False, False]
    assert corrected == "他们在谈论会意的内荣"


@given(st.text(max_size=30), st.text(max_size=8), st.text(max_size=8))
def test_any_proposal_is_decided_and_refused_ones_change_nothing(text: str, source: str, target: str) -> None:
    corrected, (decision,) = apply(text, [Proposal(source, target)], GLOSSARY)
    if decision.accepted:
        assert corrected == text.replace(source, target, 1)
        assert objection(text, Proposal(source, target), GLOSSARY) is None
    else:
        assert corrected == text
        assert decision.reason


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
    Refusal.SEGMENT: ("讨论模型", "讨论模型", "淘论魔型"),
}


@pytest.mark.parametrize("refusal", Refusal)
def test_every_refusal_occurs_and_is_in_the_documents(refusal: Refusal) -> None:
    text, source, target = ONE_OF_EACH[refusal]
    corrected, (decision,) = apply(text, [Proposal(source, target)], GLOSSARY)
    assert (corrected, decision.accepted) == (text, False)
    assert decision.reason.partition(" (")[0] == refusal
    page = Path(__file__).parents[2] / "docs" / "architecture.md"
    assert f"| {refusal} |" in page.read_text(encoding="utf-8")
