"""`duet service install|uninstall`: write the definitions, load them, and take both back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from duet.edge import api_key
from duet.settings import Settings, to_environment
from launchd.units import Service, plist, systemd_unit

NAMES = {
    "engine": ("engine", "Duet engine"),
    "router": ("asr_router", "Duet ASR router"),
    "meetings": ("pipelines", "Duet meeting worker"),
}


@dataclass(frozen=True)
class File:
    path: Path
    content: bytes


@dataclass(frozen=True)
class Plan:
    """What to write and remove, then what to run. `tolerated` commands may fail: what they undo may not be there."""

    write: tuple[File, ...] = ()
    tolerated: tuple[tuple[str, ...], ...] = ()
    remove: tuple[Path, ...] = ()
    run: tuple[tuple[str, ...], ...] = ()


def services(settings: Settings) -> list[Service]:
    """The three programs with the settings of now, whatever the environment at login will be."""
    environment = {**to_environment(settings), "PATH": "/usr/local/bin:/opt/homebrew/bin:/usr/bin:/bin"}
    return [
        Service(
            name, description, (sys.executable, "-P", "-m", module), environment, settings.home / "logs" / f"{name}.log"
        )
        for name, (module, description) in NAMES.items()
    ]


def plan_install(found: Sequence[Service], platform: str, user_home: Path, uid: int) -> Plan:
    if platform == "darwin":
        folder, domain = user_home / "Library" / "LaunchAgents", f"gui/{uid}"
        return Plan(
            write=tuple(File(folder / f"{service.label}.plist", plist(service)) for service in found),
            # An agent that is loaded must leave first: launchd refuses to load it twice.
            tolerated=tuple(("launchctl", "bootout", f"{domain}/{service.label}") for service in found),
            run=tuple(("launchctl", "bootstrap", domain, str(folder / f"{service.label}.plist")) for service in found),
        )
    folder = user_home / ".config" / "systemd" / "user"
    units = [service.unit for service in found]
    return Plan(
        write=tuple(File(folder / service.unit, systemd_unit(service).encode()) for service in found),
        run=(
            ("systemctl", "--user", "daemon-reload"),
            ("systemctl", "--user", "enable", *units),
            ("systemctl", "--user", "restart", *units),
        ),
    )


def plan_uninstall(found: Sequence[Service], platform: str, user_home: Path, uid: int) -> Plan:
    if platform == "darwin":
        folder = user_home / "Library" / "LaunchAgents"
        return Plan(
            tolerated=tuple(("launchctl", "bootout", f"gui/{uid}/{service.label}") for service in found),
            remove=tuple(folder / f"{service.label}.plist" for service in found),
        )
    folder = user_home / ".config" / "systemd" / "user"
    return Plan(
        tolerated=(("systemctl", "--user", "disable", "--now", *[service.unit for service in found]),),
        remove=tuple(folder / service.unit for service in found),
        run=(("systemctl", "--user", "daemon-reload"),),
    )


def install(settings: Settings, *, dry_run: bool) -> int:
    """Returns the exit code. Running it again replaces what is there."""
    plan = plan_install(services(settings), _platform(), Path.home(), os.getuid())
    if not dry_run:
        api_key(settings.home)
        (settings.home / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
    code = carry_out(plan, dry_run=dry_run)
    if code == 0 and not dry_run:
        typer.echo(f"installed: {settings.engine_url} and {settings.router_url}; logs in {settings.home / 'logs'}")
        if _platform() == "linux":
            typer.echo("to keep them running without a login: loginctl enable-linger")
    return code


def uninstall(settings: Settings, *, dry_run: bool) -> int:
    code = carry_out(plan_uninstall(services(settings), _platform(), Path.home(), os.getuid()), dry_run=dry_run)
    if code == 0 and not dry_run:
        typer.echo(f"uninstalled; data stays in {settings.home}")
    return code


def carry_out(plan: Plan, *, dry_run: bool) -> int:
    """Do it, or only say it."""
    for file in plan.write:
        if dry_run:
            typer.echo(f"write {file.path}\n{file.content.decode()}")
            continue
        file.path.parent.mkdir(parents=True, exist_ok=True)
        # The environment may hold private paths, never keys; still nobody else's business.
        file.path.write_bytes(file.content)
        file.path.chmod(0o600)
    for command in plan.tolerated:
        _run(command, dry_run=dry_run)
    for path in plan.remove:
        typer.echo(f"remove {path}")
        if not dry_run:
            path.unlink(missing_ok=True)
    for command in plan.run:
        problem = _run(command, dry_run=dry_run)
        if problem:
            typer.echo(f"duet: {' '.join(command)}: {problem}", err=True)
            return 1
    return 0


def _run(command: Sequence[str], *, dry_run: bool) -> str:
    """What went wrong, in the tool's words; "" when nothing did."""
    if dry_run:
        typer.echo(f"run {' '.join(command)}")
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return error.strerror or str(error)
    return "" if done.returncode == 0 else (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"


def _platform() -> str:
    return "darwin" if sys.platform == "darwin" else "linux"
