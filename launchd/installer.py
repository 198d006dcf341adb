"""`duet service install|uninstall|status`: write the definitions, load them, say how they are, and remove them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from duet.keys import api_key
from duet.programs import PROGRAMS
from duet.settings import Settings, hub_environment, to_environment
from launchd.units import Service, plist, systemd_unit


@dataclass(frozen=True)
class File:
    path: Path
    content: bytes


@dataclass(frozen=True)
class Plan:
    """Files to write and to remove, and commands to run. `tolerated` commands may fail: there may be nothing to undo.

    A command of `run` that fails is tried again for `patience_seconds`.
    """

    write: tuple[File, ...] = ()
    tolerated: tuple[tuple[str, ...], ...] = ()
    remove: tuple[Path, ...] = ()
    run: tuple[tuple[str, ...], ...] = ()
    patience_seconds: float = 0.0


def services(settings: Settings) -> list[Service]:
    """All programs with the present settings, whatever the environment at login will be."""
    search = {"PATH": "/usr/local/bin:/opt/homebrew/bin:/usr/bin:/bin"}
    environment = {**to_environment(settings), **hub_environment(), **search}
    return [
        Service(
            program.name,
            program.description,
            program.argv,
            environment,
            settings.home / "logs" / f"{program.name}.log",
            after=program.after,
        )
        for program in PROGRAMS
    ]


def plan_install(found: Sequence[Service], platform: str, user_home: Path, uid: int) -> Plan:
    if platform == "darwin":
        folder, domain = user_home / "Library" / "LaunchAgents", f"gui/{uid}"
        return Plan(
            write=tuple(File(folder / f"{service.label}.plist", plist(service)) for service in found),
            # A loaded agent must be unloaded first, since launchd refuses to load it twice. An agent that was once disabled
            # would not load at all.
            tolerated=tuple(
                ("launchctl", verb, f"{domain}/{service.label}") for verb in ("bootout", "enable") for service in found
            ),
            run=tuple(("launchctl", "bootstrap", domain, str(folder / f"{service.label}.plist")) for service in found),
            # bootout may return before the old process has gone; until then bootstrap fails with "5: Input/output error".
            patience_seconds=20.0,
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


def status(settings: Settings) -> int:
    """Print one line a service. Returns 0 when all are installed and running, else 1."""
    found = services(settings)
    files = plan_install(found, _platform(), Path.home(), os.getuid()).write
    good = True
    for service, file in zip(found, files, strict=True):
        state = _state(service) if file.path.exists() else "not installed"
        good = good and state == RUNNING
        typer.echo(f"{service.name:9} {state:14} {file.path}")
    return 0 if good else 1


RUNNING = "running"


def _state(service: Service) -> str:
    """In the words of the system's own tool."""
    if _platform() == "linux":
        state = _answer(("systemctl", "--user", "is-active", service.unit))
        return RUNNING if state == "active" else state
    listed = _answer(("launchctl", "print", f"gui/{os.getuid()}/{service.label}"))
    states = [line.partition("=")[2].strip() for line in listed.splitlines() if line.strip().startswith("state = ")]
    return states[0] if states else "not loaded"


def _answer(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    return (done.stdout or done.stderr).strip()


def carry_out(plan: Plan, *, dry_run: bool) -> int:
    """Carry out the plan; with `dry_run` only print it."""
    for file in plan.write:
        if dry_run:
            typer.echo(f"write {file.path}\n{file.content.decode()}")
            continue
        file.path.parent.mkdir(parents=True, exist_ok=True)
        # The environment may hold private paths, but no keys. Only the owner may read it.
        file.path.write_bytes(file.content)
        file.path.chmod(0o600)
    for command in plan.tolerated:
        _run(command, dry_run=dry_run)
    for path in plan.remove:
        typer.echo(f"remove {path}")
        if not dry_run:
            path.unlink(missing_ok=True)
    for command in plan.run:
        deadline = time.monotonic() + plan.patience_seconds
        while (problem := _run(command, dry_run=dry_run)) and time.monotonic() < deadline:
            time.sleep(0.5)
        if problem:
            typer.echo(f"duet: {' '.join(command)}: {problem}", err=True)
            return 1
    return 0


def _run(command: Sequence[str], *, dry_run: bool) -> str:
    """What went wrong, in the tool's words; "" when the command succeeded."""
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
