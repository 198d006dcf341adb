"""Subtitles and JSON: what any player can read, and no word lost on the way."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any
from unicodedata import category

import pytest
import srt
from hypothesis import given
from hypothesis import strategies as st
from openai.types.audio import TranscriptionSegment, TranscriptionVerbose

from duet.wire import Segment, Transcript, Word
from speech.cues import to_cues
from speech.formats import Shown, compression_ratio, rendered, to_srt, to_verbose_json, to_vtt

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
    return "".join(char for char in kept if category(char) not in ("Cc", "Cs")).replace(" ", "")


def spoken(found: list[Segment]) -> str:
    """The text of segments in which something is said."""
    said = [s for s in sorted(found, key=lambda s: (s.start, s.end)) if any(category(c)[0] not in "PZ" for c in s.text)]
    return "".join(letters(s.text) for s in said)


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
    shown = to_verbose_json(Transcript("hello you", 1.5, "en", (segment,)), Shown(words=True))
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
    shown = to_verbose_json(Transcript("", 0.0), Shown(segments=segments, words=words))
    assert ("segments" in shown, "words" in shown) == (segments, words)


SHOWN: list[tuple[str, Transcript, Shown]] = [
    (
        "speech",
        Transcript("hi", 1.0, "en", (Segment(0.0, 1.0, "hi", "en", words=(Word("hi", 0.1),)),)),
        Shown(words=True),
    ),
    ("silence", Transcript("", 3.0), Shown(words=True)),
    ("no audio", Transcript("", 0.0), Shown()),
    ("language asked for", Transcript("", 3.0), Shown(language="fr", temperature=0.7)),
    ("empty segment", Transcript("", 1.0, None, (Segment(0.0, 1.0, ""),)), Shown()),
    ("a loop", Transcript("na " * 90, 1.0, "zh", (Segment(0.0, 1.0, "na " * 90, low_confidence="loops"),)), Shown()),
]


@pytest.mark.parametrize(("transcript", "shown"), [case[1:] for case in SHOWN], ids=[case[0] for case in SHOWN])
def test_verbose_json_has_what_typed_clients_read(transcript: Transcript, shown: Shown) -> None:
    """OpenAI's own types, validated strictly: a null or a missing key under a required one is an error there."""
    body = json.loads(rendered(transcript, "verbose_json", shown))
    read = TranscriptionVerbose.model_validate(body, strict=True)
    assert body["task"] == "transcribe"
    assert read.language == (transcript.language or shown.language or "und")
    for item in body["segments"]:
        assert TranscriptionSegment.model_validate(item, strict=True).temperature == shown.temperature
        numbers: list[Any] = [item[name] for name in ("seek", "avg_logprob", "compression_ratio", "no_speech_prob")]
        assert all(isinstance(number, int | float) for number in numbers)


def test_the_compression_ratio_is_whispers() -> None:
    assert compression_ratio("") == 0.0
    assert compression_ratio("the dashboard is slow") < 1.5
    assert compression_ratio("na " * 90) > 2.4, "from there on Whisper takes a text for a loop"


def test_text_is_the_transcript() -> None:
    assert rendered(Transcript("你好", 1.0), "text") == "你好\n"
