"""A log record is one line that cannot be forged."""

from __future__ import annotations

import logging
import re
import sys

import pytest

from duet.logs import MAX_CHARACTERS, LineFormatter


def line(message: str, **fields: object) -> str:
    record = logging.makeLogRecord({"msg": message, "levelname": "INFO", **fields})
    return LineFormatter("engine").format(record)


def failed(text: str) -> str:
    """The lines of an exception that says `text`."""
    error = ValueError(text)
    return line("failed", exc_info=(type(error), error, None))


def test_a_line_has_time_level_service_message_and_fields() -> None:
    shown = line("model loaded", action="model_loaded", seconds=1.5)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info engine model loaded action=model_loaded seconds=1\.5", shown
    )


# Controls of both sets, DEL, line and paragraph separators, marks of direction, a zero-width joiner, half a surrogate pair.
UNSAFE = [
    *map(chr, range(32)), *map(chr, range(127, 160)), *"\u061c\u200e\u200f\u2028\u2029\u200d\ufeff",
    *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A)), "\ud800", "\U000e0001",
]  # fmt: skip


@pytest.mark.parametrize("char", UNSAFE, ids=ascii)
def test_nothing_that_a_terminal_obeys_reaches_a_line(char: str) -> None:
    for shown in (line(f"a{char}b"), line("x", name_given=f"a{char}b"), failed(f"a{char}b").replace("\n", "")):
        assert shown.isprintable()
        assert shown.isascii()
    assert f"a{char.encode('unicode_escape').decode()}b" in line(f"a{char}b")


def test_text_of_people_stays_readable() -> None:
    assert "会议 naïve 🎤 d'été" in line("会议 naïve 🎤 d'été")


def test_an_exception_cannot_pass_for_a_record() -> None:
    shown = failed("x\n2026-01-31T12:00:00.000Z info engine started")
    assert all(not part.startswith("2026") for part in shown.split("\n")[1:])


def test_a_long_text_is_cut() -> None:
    shown = line("m" * 100_000, field="f" * 100_000)
    assert len(shown) < 2 * MAX_CHARACTERS + 200
    assert "98000 more characters" in shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [("plain", "plain"), ("two words", '"two words"'), ('q"', '"q\\""'), ("", '""'), ("a=b", '"a=b"')],
)
def test_a_value_is_quoted_when_it_must_be(value: str, shown: str) -> None:
    assert line("x", field=value).endswith(f" field={shown}")


def test_an_exception_follows_its_line() -> None:
    try:
        int("cause")
    except ValueError:
        shown = line("failed", exc_info=sys.exc_info())
    first, _, rest = shown.partition("\n")
    assert first.endswith("engine failed")
    assert rest.startswith("  Traceback")
    assert "ValueError: invalid literal" in rest
