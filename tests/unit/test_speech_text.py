"""Normalised text, units, and the joining of pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.normalise import characters, is_han, normalise, units
from speech.text import join

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
