"""Logs: one line a record, `time level service message key=value …`, on standard error.

A record's stable name is `extra={"action": "model_loaded", ...}`: scripts can search for it while the human text changes.
Prompts, transcripts and keys are never logged.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The `X-Request-Id` of the HTTP request that is being answered."""

MAX_CHARACTERS = 2000
"""Of a message, a field, and a line of a traceback."""

# Attributes that every record has; all others came through `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z info engine model loaded action=model_loaded model=…`"""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = " ".join(f"{key}={_quoted(value)}" for key, value in vars(record).items() if key not in _STANDARD)
        message = printable(record.getMessage())
        line = " ".join(part for part in (time, record.levelname.lower(), self._service, message, fields) if part)
        return f"{line}\n{_indented(self.formatException(record.exc_info))}" if record.exc_info else line


def printable(text: str) -> str:
    """`text` without what a terminal or a reader of logs would obey: controls, line breaks, marks that turn the direction of
    writing, and half surrogate pairs are written as escapes. Text that is too long is cut."""
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:MAX_CHARACTERS]}… ({len(text) - MAX_CHARACTERS} more characters)"
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _indented(trace: str) -> str:
    """Its lines begin with spaces and a record with its time: the text of an exception cannot pass for a record."""
    return "\n".join(f"  {printable(line)}" for line in trace.split("\n"))


def _quoted(value: object) -> str:
    text = str(value)
    if text and all(char.isprintable() and char not in ' "=' for char in text):
        return printable(text)
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def configure_logs(level: str, service: str) -> None:
    """Send every logger of this process to standard error in our format. Called once, in a `__main__`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(service))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # `duet.http.edge` writes one line a request; these would write another one, with the URL's query in it.
    for noisy in ("uvicorn.access", "httpx", "httpx2", "httpcore", "urllib3", "dbos", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
