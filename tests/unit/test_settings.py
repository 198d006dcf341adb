"""Settings: precedence, names, types, and what an error says."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from duet.cli.config import lines
from duet.settings import (
    hub_environment,
    load_settings,
    origins,
    to_environment,
    unknown_variables,
)  # fmt: skip
from duet.sources import SettingsError


def written(home: Path, text: str) -> dict[str, str]:
    (home / "config.toml").write_text(text)
    return {"DUET_HOME": str(home)}


def test_the_defaults_listen_on_this_machine_alone(tmp_path: Path) -> None:
    settings = load_settings({"DUET_HOME": str(tmp_path)})
    assert (settings.engine.host, settings.engine.port) == ("127.0.0.1", 18080)
    assert (settings.router.host, settings.router.port) == ("127.0.0.1", 18081)
    assert settings.allowed_hosts == ()
    assert not settings.embedded


def test_the_home_is_a_dot_folder_unless_it_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings({}).home == tmp_path / ".duet"
    assert load_settings({"DUET_HOME": "~/elsewhere"}).home == tmp_path / "elsewhere"


def test_command_line_wins_over_environment_over_file(tmp_path: Path) -> None:
    environ = written(tmp_path, "log_level = 'debug'\n[engine]\nport = 1\nmax_rows = 3\n[router]\nport = 2\n")
    environ |= {"DUET_ENGINE__PORT": "10", "DUET_ROUTER__PORT": "20"}
    settings = load_settings(environ, engine={"port": 100})
    assert (settings.engine.port, settings.router.port, settings.engine.max_rows) == (100, 20, 3)
    assert settings.log_level == "debug"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DUET_ENGINE__PORT", "lots", "engine.port (DUET_ENGINE__PORT)"),
        ("DUET_ENGINE__PORT", "65536", "engine.port"),
        ("DUET_ENGINE__MAX_ROWS", "0", "engine.max_rows"),
        ("DUET_ENGINE__IDLE_UNLOAD_SECONDS", "-1", "engine.idle_unload_seconds"),
        ("DUET_ENGINE__TTL_SECONDS", "soon", "engine.ttl_seconds"),
        ("DUET_ENGINE__TTL_SECONDS", '{"a": -1}', "engine.ttl_seconds.a"),
        ("DUET_ENGINE__WIRED_LIMIT", "some", "engine.wired_limit"),
        ("DUET_ENGINE__WIRED_LIMIT", "0", "engine.wired_limit"),
        ("DUET_ENGINE__PRESET", "8gb", "engine.preset"),
        ("DUET_LOG_LEVEL", "loud", "log_level"),
        ("DUET_EMBEDDED", "perhaps", "embedded"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, name: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"DUET_HOME": str(tmp_path), name: value})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 'red'", "colour"),
        ("[engine]\nprot = 1", "engine.prot"),
        ("[engine]\nport = [1]", "engine.port"),
        ("engine = 5", "engine"),
        ("[engine", "config.toml"),
        ("home = '/x'", "DUET_HOME"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(written(tmp_path, text))
    assert said in str(caught.value)


def test_every_wrong_key_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"engine\.port.*router\.port"):
        load_settings({"DUET_HOME": str(tmp_path), "DUET_ENGINE__PORT": "x", "DUET_ROUTER__PORT": "y"})


def test_variables_that_are_not_settings_are_left_alone(tmp_path: Path) -> None:
    load_settings({"DUET_HOME": str(tmp_path), "DUET_LIFELINE": "1", "DUET_TEST_AUDIO": "/x", "PATH": "/bin"})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("DUET_KEY", "DUET_KEY is set and has no effect: there is no such setting; `duet config` shows all"),
        ("DUET_ENGINE__PROT", "the nearest one is DUET_ENGINE__PORT"),
        ("DUET_ENGNIE__PORT", "the nearest one is DUET_ENGINE__PORT"),
        ("DUET_ENGINE_PORT", "the nearest one is DUET_ENGINE__PORT"),
        ("DUET_ROUTER__ASR_MODLE", "the nearest one is DUET_ROUTER__ASR_MODEL"),
        ("DUET_ENGINE", "has no effect"),
        ("DUET_LOG_LEVEL__DEEPER", "the nearest one is DUET_LOG_LEVEL"),
        ("DUET_", "has no effect"),
        ("DUET_ENGINE__TTL_SECONDS__A", "the nearest one is DUET_ENGINE__TTL_SECONDS"),
    ],
)
def test_a_variable_that_is_no_setting_is_told_and_changes_nothing(tmp_path: Path, name: str, said: str) -> None:
    environ = {"DUET_HOME": str(tmp_path), name: "1"}
    assert load_settings(environ) == load_settings({"DUET_HOME": str(tmp_path)})
    (sentence,) = unknown_variables(environ)
    assert said in sentence
    assert "1" not in sentence.replace(name, ""), "a value may be a secret"
    assert origins(environ) == {}


def test_no_variable_of_ours_is_called_unknown(tmp_path: Path) -> None:
    environ = to_environment(load_settings({"DUET_HOME": str(tmp_path)})) | {"DUET_engine__port": "9"}
    assert unknown_variables(environ | {"DUET_LIFELINE": "1", "PATH": "/bin", "MY_DUET_KEY": "x"}) == []
    assert load_settings({"DUET_HOME": str(tmp_path), "DUET_engine__port": "9"}).engine.port == 9


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf[engine]\nport = 7\n",
        b"[engine]\r\nport = 7\r\n",
        b"\xef\xbb\xbf# \xe7\xab\xaf\xe5\x8f\xa3\r\n[engine]\r\nport = '7'",
    ],
)
def test_a_file_of_any_editor_is_read(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "config.toml").write_bytes(data)
    assert load_settings({"DUET_HOME": str(tmp_path)}).engine.port == 7


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff\xfel\0o\0g\0", "it is UTF-16"),
        (b"# one\n# caf\xe9\n", "line 2 is not"),
        (b"a = " + b"[" * 100_000, "config.toml"),
        (b"#" * (2 << 20), "longer than"),
        (b"a = \0", "config.toml"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "config.toml").write_bytes(data)
    with pytest.raises(SettingsError, match=r"config\.toml") as caught:
        load_settings({"DUET_HOME": str(tmp_path)})
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing"])
def test_what_is_no_file_is_named_and_does_not_hang(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.toml"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link to nothing": lambda: path.symlink_to("gone")}[kind]()
    with pytest.raises(SettingsError, match=r"config\.toml is (no file|a link)"):
        load_settings({"DUET_HOME": str(tmp_path)})


def test_a_home_that_cannot_be_named_is_told() -> None:
    with pytest.raises(SettingsError, match="DUET_HOME"):
        load_settings({"DUET_HOME": "~nobody-of-this-name/x"})


def test_folders_are_separated_as_path_is_and_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    environ = {"DUET_HOME": str(tmp_path), "DUET_ENGINE__MODEL_DIRS": "~/models::/a b:near"}
    assert load_settings(environ).engine.model_dirs == (Path("/home/me/models"), Path("/a b"), tmp_path / "near")
    environ = written(tmp_path, "[engine]\nmodel_dirs = ['~/models']\n[router]\nsensevoice_dir = '~/sv'\n")
    settings = load_settings(environ)
    assert settings.engine.model_dirs == (Path("/home/me/models"),)
    assert settings.router.sensevoice_dir == Path("/home/me/sv")


def test_pool_settings_survive_the_way_to_a_child_and_into_a_file(tmp_path: Path) -> None:
    text = '[engine]\nresident = []\nwired_limit = 1000\npreset = "32gb"\n[engine.ttl_seconds]\n"owner/a b.c" = 0\nd = 1.5\n'
    settings = load_settings(written(tmp_path, text))
    assert settings.engine.ttl_seconds == {"owner/a b.c": 0, "d": 1.5}
    assert settings.engine.resident == ()
    environment = to_environment(settings)
    (tmp_path / "config.toml").unlink()
    assert load_settings(environment) == settings
    assert load_settings(written(tmp_path, "\n".join(lines(settings)))) == settings
    environ = {"DUET_HOME": str(tmp_path / "new"), "DUET_ENGINE__RESIDENT": "asr, owner/name"}
    assert load_settings(environ).engine.resident == ("asr", "owner/name")


def test_the_environment_for_a_child_means_the_same_settings(tmp_path: Path) -> None:
    environ = written(tmp_path, "allowed_hosts = ['a.local', 'b.local']\n[engine]\nmodel_dirs = ['/a b', '/c']\n")
    settings = load_settings(environ, embedded=True, router={"sensevoice_dir": "/s", "engine_url": "http://x:1"})
    assert load_settings(to_environment(settings)) == settings


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:5"),
        ("0.0.0.0", "http://127.0.0.1:5"),
        ("::1", "http://[::1]:5"),
        ("::", "http://[::1]:5"),
        ("studio.local", "http://studio.local:5"),
    ],
)
def test_the_url_can_be_reached_from_here(tmp_path: Path, host: str, url: str) -> None:
    settings = load_settings({"DUET_HOME": str(tmp_path)}, engine={"host": host, "port": 5})
    assert settings.engine_url == url


def test_origins_name_the_file_or_the_variable(tmp_path: Path) -> None:
    environ = written(tmp_path, "[engine]\nport = 1\nmax_rows = 3\n") | {"DUET_ENGINE__PORT": "10"}
    assert origins(environ) == {
        "engine.port": "DUET_ENGINE__PORT",
        "engine.max_rows": str(tmp_path / "config.toml"),
    }


def test_what_config_prints_is_a_config_file_that_means_the_same(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, "allowed_hosts = ['a\"b']\n[engine]\nmodel_dirs = ['/a b']\n"))
    printed = "\n".join(lines(settings))
    assert tomllib.loads(printed)["engine"]["model_dirs"] == ["/a b"]
    assert load_settings(written(tmp_path, printed)) == settings


def test_the_hub_is_found_by_programs_that_start_at_login() -> None:
    environ = {"HF_HOME": "/hub", "HF_TOKEN": "secret", "OTHER": "x"}
    assert hub_environment(environ) == {"HF_HOME": "/hub"}
