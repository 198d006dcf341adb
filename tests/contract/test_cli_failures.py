"""What the commands say when the other side is not what they expect."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from duet.cli.main import app
from duet.keys import KEY_FILE, api_key
from duet.testing.stack import free_ports

STRANGER = (200, "<h1>another program</h1>")
REFUSAL = (400, json.dumps({"error": {"message": "this is no audio", "type": "x", "param": "file", "code": "y"}}))


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's `table` says: path -> (status, body); else 404."""

    def do_GET(self) -> None:
        status, body = self.server.table.get(self.path, (404, "<h1>not here</h1>"))  # type: ignore[attr-defined]
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Quiet: the test says what matters."""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[int, str]]]:
    """What answers on both ports."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.table = {}  # type: ignore[attr-defined]
    monkeypatch.setenv("DUET_HOME", str(tmp_path / "home"))
    for service in ("ENGINE", "ROUTER"):
        monkeypatch.setenv(f"DUET_{service}__PORT", str(server.server_port))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.table  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def clip(tmp_path: Path) -> str:
    path = tmp_path / "clip.wav"
    path.write_bytes(b"x")
    return str(path)


def duet(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_status_tells_a_stranger_on_the_port(table: dict[str, tuple[int, str]], tmp_path: Path) -> None:
    table |= {"/health": STRANGER}
    code, output = duet("status")
    assert code == 1
    assert output.count("another program's port") == 2
    assert not (tmp_path / "home").exists()  # to look makes nothing


@pytest.mark.parametrize("command", ["transcribe", "meeting"])
def test_a_refusal_is_shown_in_the_routers_words(
    table: dict[str, tuple[int, str]], clip: str, command: str, tmp_path: Path
) -> None:
    table |= {"/v1/audio/transcriptions": REFUSAL, "/v1/meetings": REFUSAL}
    extra = ("--out", str(tmp_path / "out")) if command == "meeting" else ()
    assert duet(command, clip, *extra) == (1, "duet: this is no audio\n")


def test_an_engine_that_hangs_ends_the_list_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duet.cli.models.LOOK", httpx.Timeout(0.2))
    monkeypatch.setattr("duet.cli.models.PATIENCE", httpx.Timeout(60.0))
    monkeypatch.setenv("DUET_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir(mode=0o700)
    api_key(tmp_path / "home")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("DUET_ENGINE__PORT", str(silent.getsockname()[1]))
        started_at = time.monotonic()
        code, output = duet("models", "list")
    assert code == 1
    assert "the engine does not answer" in output
    assert time.monotonic() - started_at < 30, "it looked, and was not patient"


def test_a_stranger_is_told_by_transcribe(table: dict[str, tuple[int, str]], clip: str) -> None:
    code, output = duet("transcribe", clip)
    assert code == 1
    assert "HTTP status 404" in output


def test_events_that_are_refused_end_the_command_with_the_cause(
    table: dict[str, tuple[int, str]], clip: str, tmp_path: Path
) -> None:
    table |= {"/v1/meetings": (202, '{"id": "m1"}'), "/v1/meetings/m1/events": REFUSAL}
    code, output = duet("meeting", clip, "--out", str(tmp_path / "out"))
    assert code == 1
    assert output.strip() == "duet: this is no audio"  # after the line that the progress bar leaves


def test_a_meeting_that_failed_says_why(table: dict[str, tuple[int, str]], clip: str, tmp_path: Path) -> None:
    job = json.dumps(
        {"status": "failed", "error": "decode: no sound", "warnings": ["w"], "progress": 1, "stage": "decode"}
    )
    table |= {
        "/v1/meetings": (202, '{"id": "m1"}'),
        "/v1/meetings/m1/events": (200, f"event: failed\ndata: {job}\n\n"),
        "/v1/meetings/m1": (200, job),
    }
    code, output = duet("meeting", clip, "--out", str(tmp_path / "out"))
    assert code == 1
    assert "note: w" in output
    assert "the meeting failed: decode: no sound" in output


def test_a_glossary_in_another_encoding_is_named(table: dict[str, tuple[int, str]], clip: str, tmp_path: Path) -> None:
    glossary = tmp_path / "terms.txt"
    glossary.write_bytes("灰度发布".encode("gbk"))
    code, output = duet("meeting", clip, "--glossary", str(glossary), "--out", str(tmp_path / "out"))
    assert code == 1
    assert "terms.txt is not UTF-8" in output


@pytest.mark.parametrize("command", ["key", "up"])
def test_a_key_that_cannot_be_read_is_named(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / KEY_FILE).mkdir()
    monkeypatch.setenv("DUET_HOME", str(tmp_path))
    for service, port in zip(("ENGINE", "ROUTER"), free_ports(2), strict=True):
        monkeypatch.setenv(f"DUET_{service}__PORT", str(port))
    code, output = duet(command)
    assert code == 1
    assert str(tmp_path / KEY_FILE) in output
    assert "DUET_HOME" in output


def test_a_home_that_is_no_folder_is_a_wrong_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DUET_HOME", str(tmp_path / "file"))
    code, output = duet("config")
    assert code == 78
    assert str(tmp_path / "file") in output
