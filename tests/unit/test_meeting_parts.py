"""Glossary, speaker assignment, summary, export: the decisions of a meeting without its processes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from duet.errors import InvalidRequest
from duet.wire import Segment, SpeakerTurn
from pipelines.glossary import Term, parse, relevant
from pipelines.meeting.artifacts import Artifacts
from pipelines.meeting.export import clock, escaped, reviewed_markdown, srt_text, transcript
from pipelines.meeting.job import Options, Progress, StageTimes
from pipelines.meeting.review.stage import Review, ReviewedSegment
from pipelines.meeting.stages import STAGES
from pipelines.meeting.summarize import RawItem, extract, quoted, verified, windows
from pipelines.meeting.transcribe import assign, by_engine, unheard
from speech.splitter import Span


def test_a_glossary_has_terms_and_aliases() -> None:
    assert parse("ClickHouse | click house | 可里克豪斯\n\n  灰度发布 \nClickHouse|ck\n") == (
        Term("ClickHouse", ("click house", "可里克豪斯", "ck")),
        Term("灰度发布"),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [("ok\n| alias", "line 2"), ("x" * 65, "line 1"), ("\n".join(f"t{i}" for i in range(501)), "501 terms")],
)
def test_a_bad_glossary_names_parameter_and_line(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(text)
    assert caught.value.param == "glossary"
    assert said in caught.value.message


def test_terms_that_sound_like_the_text_come_first() -> None:
    terms = parse("幂等\n冒烟测试\n知识蒸馏\ngrafana")
    assert relevant("我们讨论知识争流", terms, limit=2)[0] == "知识蒸馏"


def test_speech_is_cut_where_the_speaker_changes() -> None:
    samples = np.zeros(16_000 * 30, np.int16)
    turns = [SpeakerTurn(0.0, 4.0, "S1"), SpeakerTurn(4.0, 9.0, "S2"), SpeakerTurn(12.0, 15.0, "S1")]
    spoken = assign(samples, [Span(1.0, 8.0), Span(12.5, 14.0)], turns)
    assert [item.speaker for item in spoken] == ["S1", "S2", "S1"]
    assert spoken[0].end == pytest.approx(4.0, abs=0.2)


def test_without_turns_there_is_no_speaker() -> None:
    (only,) = assign(np.zeros(16_000 * 5, np.int16), [Span(1.0, 3.0)], [])
    assert only.speaker is None


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0.3, 8)), max_size=8),
    st.lists(st.tuples(st.floats(0, 50), st.floats(0.1, 8), st.sampled_from(["S1", "S2", "S3"])), max_size=12),
)
def test_assigned_segments_are_in_order_apart_and_bounded(
    spans: list[tuple[float, float]], turns: list[tuple[float, float, str]]
) -> None:
    placed, at = [], 0.0
    for gap, length in spans:
        placed.append(Span(at + gap / 10 + 0.05, at + gap / 10 + 0.05 + length))
        at = placed[-1].end
    marks = [SpeakerTurn(start, start + length, name) for start, length, name in sorted(turns)]
    samples = np.zeros(int(16_000 * (at + 2)), np.int16)
    spoken = assign(samples, placed, marks)
    assert all(one.end <= two.start + 1e-6 for one, two in itertools.pairwise(spoken))
    assert all(0 <= item.start < item.end <= at + 2 and item.end - item.start < 29 for item in spoken)
    covered = sum(item.end - item.start for item in spoken)
    assert covered >= sum(span.duration for span in placed) - 0.01 * (len(spoken) + 1)


def segments(*texts: str) -> tuple[ReviewedSegment, ...]:
    return tuple(
        ReviewedSegment(f"s{i:04d}", Segment(2.0 * i, 2.0 * i + 1.5, text, language="zh", speaker="S1"), text)
        for i, text in enumerate(texts, 1)
    )


def test_a_quote_that_was_not_said_is_unverified() -> None:
    said = segments("我们下周四上线", "预算不够")
    good = RawItem("decision", "上线定在下周四", ("s0001",), "下周四上线")
    assert verified(good, said).verified
    assert not verified(replace(good, quote="下个月取消"), said).verified
    assert not verified(replace(good, segment_ids=("s0002",)), said).verified
    assert verified(replace(good, segment_ids=("s0001", "s0099")), said).segment_ids == ("s0001",)


@pytest.mark.parametrize(
    ("quote", "said", "found"),
    [
        ("下州四上线", "那么定在下周四上线", "下周四上线"),
        ("ship on Thursdy", "OK, we SHIP on Thursday then", "SHIP on Thursday"),
        ("so we ship on thursday then all right", "we ship on thursday", "we ship on thursday"),
        ("cancel it", "we ship on thursday", None),
        ("", "we ship on thursday", None),
    ],
)
def test_a_quote_is_shown_as_it_was_said(quote: str, said: str, found: str | None) -> None:
    assert quoted(quote, said) == found


def test_an_item_without_a_text_is_its_quote() -> None:
    item = RawItem("decision", quote="下州四上线", segment_ids=("s0001",))
    assert verified(item, segments("那么定在下周四上线")).text == "下周四上线"


@given(st.lists(st.integers(1, 60), max_size=30), st.integers(100, 200))
def test_a_summary_s_windows_are_the_meeting_in_bounded_parts(lengths: list[int], characters: int) -> None:
    said = segments(*("字" * length for length in lengths))
    parts = windows(said, characters)
    assert [item for part in parts for item in part] == list(said)
    assert all(part and sum(len(item.text) for item in part) <= characters for part in parts)


def test_an_extract_keeps_the_order_and_prefers_terms_and_decisions() -> None:
    texts = [f"今天天气不错{i}" for i in range(8)] + ["决定用知识蒸馏", "你好"]
    items = extract(segments(*texts), ["知识蒸馏"])
    assert any(item.text == "决定用知识蒸馏" and item.kind == "decision" for item in items)
    assert [item.segment_ids for item in items] == sorted(item.segment_ids for item in items)


def test_speech_cannot_become_markup() -> None:
    hostile = "# head **bold** <script>alert(1)</script> [x](javascript:1) | a `b`"
    review = Review(None, segments(hostile))
    for text in (transcript("T", 9, review), reviewed_markdown("T", 9, review)):
        assert "<script>" not in text
        assert "**bold**" not in text
        assert "[x](" not in text
    assert escaped("a\nb") == "a b"
    assert "<script>" in srt_text(review, 9) or "script" in srt_text(review, 9)


@pytest.mark.parametrize(("seconds", "shown"), [(0, "00:00"), (61.9, "01:01"), (3600, "1:00:00"), (7325, "2:02:05")])
def test_times_are_rendered(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_progress_grows_to_one() -> None:
    progress = Progress()
    assert progress.overall == 0.0
    seen = []
    for stage in STAGES:
        progress.stage, progress.done = stage.name, 0.5
        progress.stages[stage.name] = StageTimes(0.0, share=stage.share)
        seen.append(progress.overall)
        progress.stages[stage.name].finished_at = 1.0
        seen.append(progress.overall)
    assert seen == [0.015, 0.03, 0.055, 0.08, 0.155, 0.23, 0.355, 0.48, 0.68, 0.88, 0.92, 0.96, 0.98, 1.0]


async def test_artifacts_are_found_by_their_inputs_alone(tmp_path: object) -> None:
    from pathlib import Path

    store = Artifacts(Path(str(tmp_path)))
    key = store.key("stage", "part", {"b": 1, "a": 2})
    assert key == store.key("stage", "part", {"a": 2, "b": 1})
    assert key != store.key("stage", "part", {"a": 2, "b": 2})
    assert store.read(key, list[int]) is None
    store.write(key, [1, 2])
    assert store.read(key, list[int]) == [1, 2]
    calls = []

    async def make(path: Path) -> None:
        calls.append(path)
        path.write_bytes(b"x")

    assert await store.make_file(key, ".bin", make) == await store.make_file(key, ".bin", make)
    assert len(calls) == 1
    assert [path.name for path in Path(str(tmp_path)).iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("options", "option"),
    [
        (Options(), None),
        (Options(quality="high"), "quality=high"),
        (Options(quality="high", language="fr"), "quality=high"),
        (Options(language="fr"), "language=fr"),
        (Options(language="zh"), None),
        (Options(language="yue"), None),
        (Options(language="fr", quality="fast"), None),
    ],
)
def test_the_language_decides_who_writes_the_text(options: Options, option: str | None) -> None:
    assert by_engine(options) == option


@pytest.mark.parametrize(
    ("options", "heard", "said"),
    [
        (Options(), "en", None),
        (Options(language="zh"), "zh", None),
        (Options(language="zh"), None, None),
        (Options(language="zh"), "en", "mostly heard en"),
        (Options(language="fr"), "fr", None),
        (Options(language="fr", quality="fast"), "en", "quality=fast is SenseVoice"),
        (Options(language="zh", quality="high"), "en", None),
    ],
)
def test_a_language_without_effect_is_said(options: Options, heard: str | None, said: str | None) -> None:
    found = unheard(options, [Segment(0.0, 2.0, "text", heard)])
    assert found is None if said is None else found is not None and said in found
