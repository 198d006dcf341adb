"""Cues: lines that can be read, and times that are those of the recording."""

from __future__ import annotations

import itertools
import unicodedata

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from duet.wire import Segment
from speech import lines
from speech.cues import Cue, to_cues
from tests.examples import examples

CLOSING = "，。！？；：、）」』》〉】”’…,.!?;:)]}%％々ーぁっゃャッ・～"
OPENING = "（「『《〈【“‘([{$¥#@"

# Each must stay on one line, wherever it stands.
ATOMS = (
    *(
        "deployments",
        "conKatenate",
        "don’t",
        "state-of-the-art",
        "Überraschung",
        "naïve",
        "C++",
        ".NET",
        "node.js",
        "e\u0301t\u00e9",
    ),
    *("3.14", "1,000,000", "12:30", "2026-12-01", "192.168.0.1", "-5", "$4.20", "99.9%", "１２：３０", "3．14", "24/7"),
    *("https://example.com/a?b=c&d=(e)", "www.example.com/x?y=z", "someone@example.com"),
    *("👨‍👩‍👧‍👦", "👍🏽", "🇨🇳", "🇩🇪", "❤️", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"),
    *("สวัสดีครับ", "ກະລຸນາ", "नमस्ते", "안녕하세요", "השלום", "مرحبا", "Ελληνικά", "Привет"),
)
HAN = "我们今天讨论数据库的性能测试然后灰度发布回滚"
KANA = "データっていうのはちょっとキャッシュをみます"
pieces_of_text = st.one_of(
    st.sampled_from(ATOMS),
    st.text(HAN, min_size=1, max_size=30),
    st.text(KANA, min_size=1, max_size=20).map(lambda text: "あ" + text + "ま"),
    st.sampled_from(["，", "。", "！", "……", "——", ", ", ". ", " ", " ", "、", "？！"]),
    st.text(HAN, min_size=1, max_size=8).map("（{}）".format),
    st.text(HAN, min_size=1, max_size=8).map("《{}》".format),
    st.text(HAN, min_size=1, max_size=8).map("“{}”".format),
)
texts = st.lists(pieces_of_text, min_size=1, max_size=25).map("".join)
anything = st.one_of(texts, st.text(max_size=120), st.text("，。（）“”.… a我👍🏽\u0301", max_size=120))


@st.composite
def recordings(draw: st.DrawFn, content: st.SearchStrategy[str] = anything) -> tuple[list[Segment], float]:
    """Segments, and where the recording ends: their times may lie beyond it."""
    found = []
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.one_of(st.floats(0, 60), st.floats(0, 40_000)))
        end = start + draw(st.one_of(st.just(0.0), st.floats(0, 1), st.floats(0, 40)))
        found.append(Segment(start, end, draw(content), speaker=draw(st.sampled_from([None, "S1", "S12"]))))
    return found, draw(st.one_of(st.floats(0.05, 1), st.floats(0.1, 60), st.floats(1, 50_000)))


@given(recordings(), st.booleans())
def test_cues_lie_in_the_recording_one_after_the_other(made: tuple[list[Segment], float], speakers: bool) -> None:
    found, seconds = made
    cues = to_cues(found, seconds=seconds, speakers=speakers)
    for cue in cues:
        assert 0 <= cue.start < cue.end <= max(1, int(seconds * 1000))
        assert cue.end - cue.start <= 7000
    for before, after in itertools.pairwise(cues):
        assert before.end <= after.start


@given(recordings(), st.booleans())
def test_a_cue_has_two_lines_that_fit(made: tuple[list[Segment], float], speakers: bool) -> None:
    for cue in to_cues(made[0], speakers=speakers):
        rows = cue.text.split("\n")
        assert len(rows) <= 2
        assert all(0 < lines.width(row) <= 42 for row in rows)


@settings(max_examples=examples(60))
@given(recordings(texts))
def test_no_line_begins_with_a_closing_mark_or_ends_with_an_opening_one(made: tuple[list[Segment], float]) -> None:
    for segment in made[0]:
        rows = [row for cue in to_cues([segment]) for row in cue.text.split("\n")]
        for before, after in itertools.pairwise(rows):
            assert after[0] not in CLOSING or after.startswith(ATOMS), (before, after)
            assert before[-1] not in OPENING, (before, after)


@settings(max_examples=examples(60))
@given(st.lists(st.one_of(pieces_of_text, st.sampled_from(ATOMS)), min_size=1, max_size=30), st.floats(0.1, 90))
def test_words_numbers_addresses_and_pictures_stay_whole(parts: list[str], seconds: float) -> None:
    text = " ".join(parts)
    rows = [row for cue in to_cues([Segment(0.0, seconds, text)]) for row in cue.text.split("\n")]
    for part in parts:
        if part in ATOMS:
            assert any(part in row for row in rows), (part, rows)


@settings(max_examples=examples(60))
@given(recordings())
def test_no_cluster_is_cut_and_nothing_said_is_lost(made: tuple[list[Segment], float]) -> None:
    for segment in made[0]:
        shown = "".join(cue.text for cue in to_cues([segment]))
        assert _clusters(shown) == (_clusters(segment.text) if lines.has_words(segment.text) else [])


def _clusters(text: str) -> list[str]:
    spaced = regex.sub(r"\s+", " ", text).replace("-->", "→")
    kept = "".join(char for char in spaced if unicodedata.category(char) not in ("Cc", "Cs"))
    return [cluster.strip() for cluster in regex.findall(r"\X", kept) if not cluster.isspace()]


@pytest.mark.parametrize(
    "text",
    [
        "我们昨天在会议室里讨论了服务上线，然后大家都同意把数据库先升级再做。《运维手册》里面也写得非常清楚了",
        "今天我们先看一下这个接口的性能表现非常稳定没有任何问题所以说就这么定下来。大家看行不行",
        "请大家先看一下我昨天发到群里面的（最新版）文档然后再决定是不是要上线",
        "他说这个方案的名字叫做灰度发布与回滚《第二版》大家可以先看看再说吧好不好",
        "このシステムはとてもべんりですがもうちょっとキャッシュをつかったほうがいいとおもいますっ",
        "그래서 우리는 데이터베이스를 먼저 업그레이드하기로 했습니다, 그리고 다음 주에 배포합니다.",
        "ça va bien aujourd’hui, mon cher ami, tu ne trouves pas que ce soit ainsi ? « Oui » !",
        "我们先等一下…………然后再说吧大家觉得这个事情到底应该怎么办才好呢？！！！！真的吗",
        "这个功能的完成度大概是百分之九十九点九也就是９９．９％左右吧我觉得已经很不错了，是吗",
        "史蒂夫和他的朋友们昨天在会议上遇到了阿尔伯特·爱因斯坦先生并且谈了很久很久",
    ],
)
def test_lines_follow_the_printers_rules(text: str) -> None:
    rows = [row for cue in to_cues([Segment(0.0, 10.0, text)]) for row in cue.text.split("\n")]
    assert "".join(rows).replace(" ", "") == text.replace(" ", "")
    assert not [row for row in rows if row[0] in CLOSING + "?!»" or row[-1] in OPENING + "«"]
    assert all(lines.has_words(row) for row in rows)


def test_a_short_bracket_is_not_divided() -> None:
    text = "请大家先看一下我昨天发到群里的（最新版）文档然后再决定是不是要上线"
    rows = [row for cue in to_cues([Segment(0.0, 10.0, text)]) for row in cue.text.split("\n")]
    assert any("（最新版）" in row for row in rows), rows


def test_thai_is_cut_between_clusters_when_it_must_be() -> None:
    text = "เราจะประชุมกันเรื่องฐานข้อมูลและการปรับปรุงระบบในสัปดาห์หน้าที่สำนักงานใหญ่" * 2
    rows = [row for cue in to_cues([Segment(0.0, 10.0, text)]) for row in cue.text.split("\n")]
    assert "".join(rows) == text
    assert not [row for row in rows if unicodedata.category(row[0]) == "Mn" or row[0] in "ะาำๅๆ" or row[-1] in "เแโใไ"]


def test_a_long_segment_is_cut_at_its_punctuation() -> None:
    text = "我们今天先讨论向量数据库的查询延迟，然后再看一下灰度发布的进度，最后安排下周的工作，请大家准备。"
    cues = to_cues([Segment(0.0, 14.0, text)])
    assert [cue.text.replace("\n", "")[-1] for cue in cues] == ["，"] * (len(cues) - 1) + ["。"]


def test_speaker_names_lead_each_cue() -> None:
    cues = to_cues([Segment(0.0, 2.0, "hello", speaker="S2"), Segment(3.0, 4.0, "yes")], speakers=True)
    assert [cue.text for cue in cues] == ["S2: hello", "yes"]


@pytest.mark.parametrize(
    ("name", "segments", "seconds", "expected"),
    [
        ("a short word has time after it", [(1.0, 1.2, "yes")], 9.0, [(1000, 1700)]),
        ("a short word before the next", [(1.0, 1.2, "yes"), (1.4, 3.0, "no")], 9.0, [(1000, 1400), (1400, 3000)]),
        ("no length", [(1.0, 1.0, "a"), (1.1, 1.2, "b")], 9.0, [(1000, 1300), (1300, 2000)]),
        ("two at once", [(0.0, 6.0, "a"), (0.0, 3.0, "b")], 9.0, [(0, 300), (300, 6000)]),
        ("a turn and an interjection", [(0.0, 6.0, "a"), (2.0, 3.0, "b")], 9.0, [(0, 2000), (2000, 3000)]),
        ("the last word", [(0.0, 5.0, "a"), (10.35, 10.5, "b")], 11.0, [(0, 5000), (10350, 11000)]),
        ("a word at the very end", [(10.9, 11.0, "b")], 11.0, [(10700, 11000)]),
        ("beyond the end", [(0.0, 400.0, "hello")], 6.0, [(0, 6000)]),
        ("all beyond the end", [(20.0, 21.0, "a"), (30.0, 31.0, "b")], 11.0, [(10400, 10700), (10700, 11000)]),
        ("a clip of half a second", [(0.0, 0.5, "hi")], 0.5, [(0, 500)]),
        ("more cues than time", [(0.0, 0.1, "a"), (0.0, 0.1, "b"), (0.1, 0.2, "c")], 0.2, [(0, 68), (68, 134), (134, 200)]),
        ("nothing but marks", [(0.0, 1.0, "。"), (1.0, 2.0, "…"), (2.0, 3.0, " ")], 3.0, []),
        ("ten hours", [(36_000.0, 36_001.0, "late")], 40_000.0, [(36_000_000, 36_001_000)]),
    ],
)  # fmt: skip
def test_times_of_cues(
    name: str, segments: list[tuple[float, float, str]], seconds: float, expected: list[tuple[int, int]]
) -> None:
    cues: list[Cue] = to_cues([Segment(*segment) for segment in segments], seconds=seconds)
    assert [(cue.start, cue.end) for cue in cues] == expected, name


def test_what_is_said_next_does_not_wait_for_a_long_text() -> None:
    long = "这句话说得非常快所以每一条字幕都没有足够的时间可以看清楚" * 3
    cues = to_cues([Segment(0.0, 1.0, long, speaker="S1"), Segment(1.0, 4.0, "hello", speaker="S2")], seconds=9.0)
    assert len(cues) > 2
    assert (cues[-1].start, cues[-1].end) == (1000, 4000)
