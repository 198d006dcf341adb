"""The `duet` command without services: help, settings, keys, clear refusals."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from duet.cli.failures import failed
from duet.cli.main import app
from duet.cli.models import table
from duet.cli.up import greeting, programs
from tests.conftest import HomeSettings

COMMANDS = (
    ("up",), ("status",), ("key",), ("config",), ("repair",), ("transcribe",), ("meeting",),
    ("service", "install"), ("service", "uninstall"),
    ("models", "list"), ("models", "load"), ("models", "unload"), ("models", "pin"), ("models", "unpin"),
)  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DUET_HOME", str(tmp_path / "home"))
    # Nothing listens there: the services are down, whatever runs on this machine.
    monkeypatch.setenv("DUET_ENGINE__PORT", "1")
    monkeypatch.setenv("DUET_ROUTER__PORT", "1")
    return tmp_path / "home"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Example:" in result.output


def test_a_wrong_setting_ends_with_its_name_and_78(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUET_ENGINE__PORT", "x")
    result = CliRunner().invoke(app, ["config"])
    assert result.exit_code == 78
    assert "engine.port" in result.output


def test_a_variable_that_is_no_setting_is_told_beside_the_output(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUET_KEY", "secret")
    result = CliRunner().invoke(app, ["key"])
    assert result.exit_code == 0
    assert result.stdout.startswith("duet-")
    assert "DUET_KEY is set and has no effect" in result.stderr
    assert "secret" not in result.output


def test_the_key_is_made_once_and_printed(home: Path) -> None:
    first, second = (CliRunner().invoke(app, ["key"]).output for _ in range(2))
    assert first == second
    assert first.startswith("duet-")
    assert CliRunner().invoke(app, ["key", "--path"]).output.strip() == str(home / "api_key")
    assert (home / "api_key").stat().st_mode & 0o777 == 0o600


def test_status_says_that_nothing_runs(home: Path) -> None:
    plain = CliRunner().invoke(app, ["status"])
    assert plain.exit_code == 1
    assert plain.output.count("down") == 2
    found = json.loads(CliRunner().invoke(app, ["status", "--json"]).output)
    assert [found[name]["up"] for name in ("engine", "router")] == [False, False]


def test_a_client_command_without_services_says_what_to_do(home: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.wav"
    clip.write_bytes(b"x")
    for command in ("transcribe", "meeting"):
        result = CliRunner().invoke(app, [command, str(clip)])
        assert result.exit_code == 1
        assert "duet up" in result.output


def test_up_names_the_port_that_is_taken(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(app, ["up", "--engine-port", str(port)])
    assert result.exit_code == 1
    assert f"127.0.0.1:{port}" in result.output
    assert "--engine-port" in result.output


def test_the_programs_get_the_settings_of_the_command_line(home_settings: HomeSettings) -> None:
    settings = home_settings(embedded=True, engine={"port": 9000})
    found = {program.name: program for program in programs(settings)}
    assert set(found) == {"engine", "router", "meetings"}
    for program in found.values():
        assert program.environment["DUET_ENGINE__PORT"] == "9000"
        assert program.environment["DUET_EMBEDDED"] == "true"


def test_the_greeting_says_where_and_how(home_settings: HomeSettings) -> None:
    settings = home_settings()
    shown = greeting(settings, ["some-model"])
    assert "http://127.0.0.1:18080/v1" in shown
    assert '"model": "some-model"' in shown
    assert "--embedded" in greeting(settings, [])


def test_service_install_can_be_looked_at_first(home: Path) -> None:
    result = CliRunner().invoke(app, ["service", "install", "--embedded", "--dry-run"])
    assert result.exit_code == 0
    assert result.output.count("asr_router") >= 1
    assert not (home / "logs").exists()


def test_nothing_that_a_terminal_obeys_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Names of folders and words of a service may hold anything."""
    placed: dict[str, Any] = {
        "id": "a\x1b[2J\u202eb",
        "state": "loaded",
        "charged_bytes": 0,
        "estimate_bytes": 0,
        "crashes": 0,
    }
    placed |= dict.fromkeys(("problem", "running", "waiting", "pinned", "rests_seconds", "idle_seconds", "ttl_seconds"))
    (row,) = table([placed])
    failed("no model 'a\x1b]0;x\x07\nduet: all is well'")
    assert row.startswith("a\\x1b[2J\\u202eb")
    assert capsys.readouterr().err == "duet: no model 'a\\x1b]0;x\\x07\\nduet: all is well'\n"
