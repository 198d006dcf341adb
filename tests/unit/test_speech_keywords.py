"""Keywords as clients write them: repeated fields, one field with commas, a JSON list."""

from __future__ import annotations

import pytest

from duet.errors import InvalidRequest
from speech.keywords import MAX_KEYWORDS, parse_keywords


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ()),
        (["向量数据库", "Qwen"], ("向量数据库", "Qwen")),
        (["a, b\nc"], ("a", "b", "c")),
        (['["a, b", "c"]'], ("a, b", "c")),
        ([" a ", "a", ""], ("a",)),
        (["\ufeff向量，千问、Ｑｗｅｎ\r\nb\tc  d"], ("向量", "千问", "Qwen", "b", "c d")),
        (['\ufeff["\\u200bQwen", 3]\r\n'], ("Qwen", "3")),
    ],
)
def test_keywords_are_read_as_clients_write_them(given: list[str], expected: tuple[str, ...]) -> None:
    assert parse_keywords(given) == expected


@pytest.mark.parametrize(
    "given",
    [
        ["[1"],
        ["[" * 100_000],
        ["x" * 65],
        ["[null]"],
        ['["\\ud800"]'],
        ["a\0b"],
        [",".join(map(str, range(MAX_KEYWORDS + 1)))],
    ],
    ids=["no list", "too deep", "too long", "no word", "half a character", "no text", "too many"],
)
def test_bad_keywords_are_refused_by_name(given: list[str]) -> None:
    for name in ("keywords", "hotwords"):
        with pytest.raises(InvalidRequest, match=name) as raised:
            parse_keywords(given, name=name)
        assert raised.value.param == name
