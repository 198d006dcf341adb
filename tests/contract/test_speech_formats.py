"""Subtitles and JSON: what any player can read, and no word lost on the way."""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from datetime import timedelta

import pytest
import srt
from hypothesis import given
from hypothesis import strategies as st

from duet.wire import Segment, Transcript, Word
from speech.formats import rendered, to_cues, to_srt, to_verbose_json, to_vtt

VTT_CUE = re.compile(r"(\d\d+):(\d\d):(\d\d)\.(\d{3}) --> (\d\d+):(\d\d):(\d\d)\.(\d{3})\n(.+)", re.DOTALL)

words = st.text("abcxyzé019-'’.,…テスト한국", min_size=1, max_size=60)
han = st.text("我们今天讨论数据库的性能，测试。！？", min_size=1, max_size=120)
english = st.lists(st.sampled_from(["we", "need", "the", "dashboard,", "and", "deployments."]), max_size=60).map(
    " ".join
)
anything = st.text(max_size=80)
texts = st.one_of(han, english, anything, st.lists(st.one_of(han, words, english), max_size=6).map(" ".join))


@st.composite
def segments(draw: st.DrawFn) -> list[Segment]:
    found = []
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.floats(0, 4000))
        end = start + draw(st.one_of(st.just(0.0), st.floats(0, 40)))
        speaker = draw(st.sampled_from([None, "S1", "S12"]))
        found.append(Segment(start, end, draw(texts), speaker=speaker))
    return found


def letters(text: str) -> str:
    """What must survive: all but space, control characters, and the arrow that is written otherwise."""
    kept = re.sub(r"\s+", " ", text).replace("-->", "→")
    return "".join(char for char in kept if unicodedata.category(char) != "Cc").replace(" ", "")


def spoken(found: list[Segment]) -> str:
    return "".join(letters(s.text) for s in sorted(found, key=lambda s: (s.start, s.end)))


def width(line: str) -> float:
    return sum(42 / 16 if unicodedata.east_asian_width(char) in "WF" else 1.0 for char in line)


@given(segments(), st.booleans())
def test_cues_keep_the_rules(found: list[Segment], speakers: bool) -> None:
    cues = to_cues(found, speakers=speakers)
    for cue in cues:
        assert 700 <= cue.end - cue.start <= 7000
        lines = cue.text.split("\n")
        assert len(lines) <= 2
        assert all(0 < width(line) <= 42 for line in lines)
    for before, after in itertools.pairwise(cues):
        assert before.end <= after.start


@given(segments())
def test_srt_read_again_has_the_same_cues_and_all_the_text(found: list[Segment]) -> None:
    cues = to_cues(found)
    again = list(srt.parse(to_srt(found)))
    assert [(cue.start / timedelta(milliseconds=1), cue.content) for cue in again] == [(c.start, c.text) for c in cues]
    assert [cue.index for cue in again] == list(range(1, len(cues) + 1))
    assert "".join(letters(cue.content) for cue in again) == spoken(found)


@given(segments())
def test_vtt_read_again_has_the_same_cues_and_all_the_text(found: list[Segment]) -> None:
    cues = to_cues(found)
    head, *blocks = to_vtt(found).removesuffix("\n").split("\n\n")
    assert head == "WEBVTT"
    assert len(blocks) == len(cues)
    for block, cue in zip(blocks, cues, strict=True):
        match = VTT_CUE.fullmatch(block)
        assert match is not None
        *clock, text = match.groups()
        hours, minutes, seconds, rest = (int(part) for part in clock[:4])
        assert ((hours * 60 + minutes) * 60 + seconds) * 1000 + rest == cue.start
        assert text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == cue.text


def test_a_long_segment_is_cut_at_its_punctuation() -> None:
    text = "我们今天先讨论向量数据库的查询延迟，然后再看一下灰度发布的进度，最后安排下周的工作，请大家准备。"
    cues = to_cues([Segment(0.0, 14.0, text)])
    assert [cue.text.replace("\n", "")[-1] for cue in cues] == ["，"] * (len(cues) - 1) + ["。"]


def test_speaker_names_lead_each_cue() -> None:
    cues = to_cues([Segment(0.0, 2.0, "hello", speaker="S2"), Segment(3.0, 4.0, "yes")], speakers=True)
    assert [cue.text for cue in cues] == ["S2: hello", "yes"]


def test_a_text_longer_than_its_time_pushes_what_follows() -> None:
    cues = to_cues([Segment(1.0, 1.0, "zero length"), Segment(1.1, 1.2, "next")])
    assert [(cue.start, cue.end) for cue in cues] == [(1000, 1700), (1700, 2400)]


def test_speakers_who_overlap_follow_one_another() -> None:
    cues = to_cues([Segment(0.0, 6.0, "long turn"), Segment(2.0, 3.0, "yes")])
    assert [(cue.start, cue.end, cue.text) for cue in cues] == [(0, 2000, "long turn"), (2000, 3000, "yes")]


def test_markup_is_escaped_in_vtt() -> None:
    assert "&lt;b&gt; R&amp;D" in to_vtt([Segment(0.0, 2.0, "<b> R&D")])


def test_a_time_line_in_the_text_is_no_cue() -> None:
    text = "first 2 00:00:05,000 --> 00:00:06,000 second"
    assert len(list(srt.parse(to_srt([Segment(0.0, 3.0, text)])))) == len(to_cues([Segment(0.0, 3.0, text)]))


def test_nothing_spoken_is_an_empty_file() -> None:
    assert to_srt([]) == ""
    assert to_vtt([Segment(0.0, 1.0, " ")]) == "WEBVTT\n"


def test_verbose_json_has_openai_fields_and_ours() -> None:
    words = (Word("hello", 0.06), Word("you", 0.5, 0.9))
    segment = Segment(0.0, 1.23456, "hello you", language="en", emotion="happy", event="speech", words=words)
    shown = to_verbose_json(Transcript("hello you", 1.5, "en", (segment,)), words=True)
    assert (shown["task"], shown["language"], shown["duration"], shown["text"]) == (
        "transcribe",
        "en",
        1.5,
        "hello you",
    )
    assert shown["words"] == [{"word": "hello", "start": 0.06, "end": 0.5}, {"word": "you", "start": 0.5, "end": 0.9}]
    (first,) = shown["segments"]
    assert (first["id"], first["start"], first["end"], first["emotion"]) == (0, 0.0, 1.235, "happy")
    json.dumps(shown)


@pytest.mark.parametrize(("segments", "words"), [(True, False), (False, True), (False, False)])
def test_verbose_json_gives_the_granularities_asked_for(segments: bool, words: bool) -> None:
    shown = to_verbose_json(Transcript("", 0.0), segments=segments, words=words)
    assert ("segments" in shown, "words" in shown) == (segments, words)


def test_text_is_the_transcript() -> None:
    assert rendered(Transcript("你好", 1.0), "text") == "你好\n"
