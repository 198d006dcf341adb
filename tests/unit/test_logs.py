"""A log record is one line that cannot be forged."""

from __future__ import annotations

import logging
import re
import sys

import pytest

from duet.logs import LineFormatter


def line(message: str, **fields: object) -> str:
    record = logging.makeLogRecord({"msg": message, "levelname": "INFO", **fields})
    return LineFormatter("engine").format(record)


def test_a_line_has_time_level_service_message_and_fields() -> None:
    shown = line("model loaded", action="model_loaded", seconds=1.5)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info engine model loaded action=model_loaded seconds=1\.5", shown
    )


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\rb"])
def test_a_line_break_from_outside_begins_no_record(text: str) -> None:
    shown = line(text, name_given=text)
    assert "\n" not in shown
    assert "\r" not in shown


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
    assert rest.startswith("Traceback")
    assert "ValueError: invalid literal" in rest
