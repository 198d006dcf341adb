"""Normalised text, units, and the joining of pieces."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet.errors import InvalidRequest
from pipelines.glossary import Term, parse
from speech.keywords import parse_keywords
from speech.normalise import characters, is_han, normalise, units
from speech.text import join, read

NORMALISED = [
    ("大家好，今天的会议！", "大家好今天的会议"),
    ("我們討論資料庫的效能", "我们讨论资料库的效能"),
    ("Hello,  WORLD.", "hello world"),
    ("部署 Kubernetes 集群", "部署kubernetes集群"),
    ("１２３ＡＢＣ", "123abc"),
    ("It’s don't", "it's don't"),
    ("1,000,000 and 3.5 and 1,00", "1000000 and 3.5 and 1,00"),
    ("10:30 v2", "10:30 v2"),
    ("三 is not 3", "三is not 3"),
    ("人々二〇二六", "人々二〇二六"),
    ("…！？ -- ", ""),
    ("", ""),
]


@pytest.mark.parametrize(("text", "expected"), NORMALISED)
def test_normalised(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(st.text("我們资料 aB1,.3’'，\n－ｱé", max_size=40))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


def test_units_are_han_characters_words_and_numbers() -> None:
    assert units("用 Qwen3-ASR 转 3.5 小时, it's ok") == ["用", "Qwen3", "ASR", "转", "3.5", "小", "时", "it's", "ok"]


def test_characters_leave_out_spaces() -> None:
    assert characters("a bc 你好") == ["a", "b", "c", "你", "好"]


@pytest.mark.parametrize(
    ("text", "expected"), [("你好", True), ("々〇𠮷", True), ("你a", False), ("", False), ("，", False)]
)
def test_han_is_told_from_other_scripts(text: str, expected: bool) -> None:
    assert is_han(text) is expected


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["hello", "world"], "hello world"),
        (["你好。", "我们开始"], "你好。我们开始"),
        (["部署", "kubernetes", "集群"], "部署kubernetes集群"),
        ([" a ", "", "  ", "b"], "a b"),
        ([], ""),
    ],
)
def test_pieces_are_joined_as_people_write(pieces: list[str], expected: str) -> None:
    assert join(pieces) == expected


TERM = "ClickHouse"
ONE_TERM = [
    pytest.param(f"\ufeff{TERM}", id="BOM"),
    pytest.param(f"\ufeff\ufeff{TERM}\ufeff", id="several BOMs"),
    pytest.param(f"{TERM}\r\n", id="CRLF"),
    pytest.param(f"\r{TERM}\r", id="CR"),
    pytest.param(f"{TERM}\u2028", id="line separator"),
    pytest.param(f"\u2029{TERM}\x85\x0b\x0c\x1e", id="other line ends"),
    pytest.param("ＣｌｉｃｋＨｏｕｓｅ", id="full width"),
    pytest.param("Click\u200bHouse", id="zero-width space"),
    pytest.param("Click\u00adHouse", id="soft hyphen"),
    pytest.param("Click\u200dHouse\u200c", id="stray joiners"),
    pytest.param("\u202dClickHouse\u202c", id="direction"),
    pytest.param("\u2067ClickHouse\u2069\u2060", id="isolates"),
    pytest.param(f"\t{TERM}\t", id="tabs around"),
    pytest.param(f"\u3000{TERM}\u00a0\u2003", id="other spaces"),
    pytest.param("Click\x1b\x07House", id="control characters"),
]


@pytest.mark.parametrize("written", ONE_TERM)
def test_a_term_is_the_same_however_its_file_was_written(written: str) -> None:
    assert [term.text for term in parse(written)] == [TERM]
    assert [TERM, *(alias for term in parse(f"{TERM}|x") for alias in term.aliases)] == [TERM, "x"]
    assert parse_keywords([written]) == (TERM,)
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert read(written.encode(encoding), name="f").strip() == TERM


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("e\u0301cole", "école"),
        ("ｶﾞｲﾄﾞ", "ガイド"),
        ("ﾄﾞ", "ド"),
        ("中文，标点！（括号）", "中文，标点！（括号）"),
        ("Ａ｜Ｂ＃１", "A|B#1"),
        ("👨‍👩‍👧‍👦", "👨‍👩‍👧‍👦"),
        ("می‌خواهم", "می‌خواهم"),
        ("a\r\n\r\nb\tc", "a\n\nb\tc"),
        ("灰度發布", "灰度發布"),
        ("ﬁle ①", "ﬁle ①"),
    ],
)
def test_text_is_read_as_it_is_meant(written: str, expected: str) -> None:
    assert read(written, name="f") == expected


@given(
    st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda text: not re.search("[\0\x80-\x9f\ufffd]", text))
)
def test_reading_twice_changes_nothing(text: str) -> None:
    once = read(text, name="f")
    assert read(once, name="f") == once
    assert read(text.encode("utf-8-sig"), name="f") == once


@pytest.mark.parametrize(
    "given",
    ["a\0b", "caf\ufffd", "\ud800", "Ã\x83", "灰度发布".encode("gbk"), b"\xff\xfea", b"\xff", "a".encode("utf-16-le")],
)
def test_damaged_text_is_refused_by_name(given: str | bytes) -> None:
    with pytest.raises(InvalidRequest, match="glossary is not UTF-8 text") as raised:
        read(given, name="glossary")
    assert raised.value.param == "glossary"


def test_a_table_of_a_spreadsheet_is_a_glossary() -> None:
    assert parse("\ufeffClickHouse\tclick house\tck\r\nKafka\t\r\n\t灰度\u3000发布 ｜ 会度发布\r\n") == (
        Term("ClickHouse", ("click house", "ck")),
        Term("Kafka"),
        Term("灰度 发布", ("会度发布",)),
    )
