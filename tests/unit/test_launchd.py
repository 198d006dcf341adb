"""Service definitions: complete, quoted, loadable; the installer's plan for each system."""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
from pathlib import Path

import pytest

from duet.settings import load_settings
from launchd.installer import Plan, carry_out, plan_install, plan_uninstall, services
from launchd.units import Service, plist, systemd_unit
from tests.conftest import HomeSettings

ODD = Service(
    "engine",
    "Duet engine",
    ("/opt/my python/bin/python3", "-m", "engine"),
    {"DUET_HOME": '/home/a b/100% "du$et\\', "PATH": "/usr/bin"},
    Path("/home/a b/logs/engine.log"),
)


def test_a_plist_says_what_launchd_needs() -> None:
    found = plistlib.loads(plist(ODD))
    assert found["Label"] == "dev.duet.engine"
    assert found["ProgramArguments"] == list(ODD.argv)
    assert found["EnvironmentVariables"] == dict(ODD.environment)
    assert found["RunAtLoad"] is True
    assert found["KeepAlive"] == {"SuccessfulExit": False}
    assert found["StandardErrorPath"] == str(ODD.log)
    assert found["Umask"] == 0o077


def test_a_unit_escapes_what_systemd_would_expand() -> None:
    text = systemd_unit(ODD)
    assert 'ExecStart="/opt/my python/bin/python3" "-m" "engine"' in text
    assert r'Environment="DUET_HOME=/home/a b/100%% \"du$et\\"' in text
    assert "Restart=on-failure" in text
    assert "StartLimitIntervalSec=0\n" in text  # never given up, whatever its exit code
    assert "Prevent" not in text
    assert "RestartSec=10\n" in text
    with pytest.raises(ValueError):
        systemd_unit(Service("x", "x", ("a\nb",), {}, Path("/x")))


@pytest.mark.debian
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    settings = load_settings({"DUET_HOME": str(tmp_path / "a home")}, embedded=True)
    paths = []
    for service in services(settings):
        path = tmp_path / service.unit
        path.write_text(systemd_unit(service))
        paths.append(str(path))
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    tool = shutil.which("systemd-analyze")
    assert tool is not None
    done = subprocess.run(
        [tool, "--user", "verify", *paths], env=environment, capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "duet-" in line]
    assert done.returncode == 0, done.stderr
    assert ours == []


def test_the_services_carry_the_settings_of_now(home_settings: HomeSettings) -> None:
    settings = home_settings(embedded=True, engine={"port": 9000})
    found = services(settings)
    assert [service.name for service in found] == ["engine", "router", "meetings"]
    for service in found:
        assert service.environment["DUET_ENGINE__PORT"] == "9000"
        assert service.environment["DUET_EMBEDDED"] == "true"
        assert "KEY" not in "".join(service.environment)


@pytest.mark.parametrize(("platform", "tool"), [("darwin", "launchctl"), ("linux", "systemctl")])
def test_install_writes_then_loads_and_uninstall_takes_back_the_same(
    tmp_path: Path, home_settings: HomeSettings, platform: str, tool: str
) -> None:
    found = services(home_settings())
    install, uninstall = (plan(found, platform, tmp_path, 501) for plan in (plan_install, plan_uninstall))
    assert {file.path for file in install.write} == set(uninstall.remove)
    assert all(command[0] == tool for command in (*install.run, *uninstall.tolerated))
    if platform == "darwin":
        assert install.run[0][:3] == ("launchctl", "bootstrap", "gui/501")


def test_a_plan_is_carried_out_and_a_dry_run_is_not(
    tmp_path: Path, home_settings: HomeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_install(services(home_settings()), "linux", tmp_path, 1)
    only_files = Plan(write=plan.write)
    assert carry_out(only_files, dry_run=True) == 0
    assert not (tmp_path / ".config").exists()
    assert "ExecStart" in capsys.readouterr().out
    assert carry_out(only_files, dry_run=False) == 0
    written = [file.path for file in plan.write]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in written)
    assert carry_out(Plan(remove=tuple(written)), dry_run=False) == 0
    assert not any(path.exists() for path in written)


def test_a_command_that_fails_is_an_error_with_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert carry_out(Plan(run=(("sh", "-c", "echo broken >&2; exit 3"),)), dry_run=False) == 1
    assert "broken" in capsys.readouterr().err
    assert carry_out(Plan(tolerated=(("no-such-command-here",),)), dry_run=False) == 0
