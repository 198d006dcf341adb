"""Service definitions as text: launchd property lists for macOS, systemd user units for Linux. Pure functions."""

from __future__ import annotations

import plistlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LABEL = "dev.duet"


@dataclass(frozen=True)
class Service:
    """One program that runs at login and is restarted after a crash. Output goes to `log`, whose folder must exist.

    `after` names services that systemd starts first; launchd has no order, and none of the programs needs one.
    """

    name: str
    description: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    after: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """launchd's label."""
        return f"{LABEL}.{self.name}"

    @property
    def unit(self) -> str:
        """systemd's unit name."""
        return unit_name(self.name)


def unit_name(service: str) -> str:
    return f"duet-{service}.service"


def plist(service: Service) -> bytes:
    """launchd.plist(5). It is started again unless it succeeded, at most every 30 s (a configuration
    error would come back)."""
    return plistlib.dumps(
        {
            "Label": service.label,
            "ProgramArguments": list(service.argv),
            "EnvironmentVariables": dict(service.environment),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 30,
            "ExitTimeOut": 25,
            "ProcessType": "Interactive",
            "StandardOutPath": str(service.log),
            "StandardErrorPath": str(service.log),
            "WorkingDirectory": "/",
            "Umask": 0o077,
        }
    )


def systemd_unit(service: Service) -> str:
    """systemd.service(5). It is started again for ever, as by launchd: what was wrong, even a setting, may be mended."""
    environment = "\n".join(f"Environment={_quoted(f'{name}={value}')}" for name, value in service.environment.items())
    after = "".join(f"\nAfter={unit_name(name)}" for name in service.after)
    return f"""\
[Unit]
Description={service.description}{after}
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={" ".join(_quoted(argument).replace("$", "$$") for argument in service.argv)}
{environment}
Restart=on-failure
RestartSec=10
TimeoutStopSec=25
UMask=0077
StandardOutput=append:{_path(service.log)}
StandardError=append:{_path(service.log)}

[Install]
WantedBy=default.target
"""


def _quoted(text: str) -> str:
    """systemd's quoting: `%` begins a specifier, backslash and quote need an escape. `$` begins a variable in ExecStart= only."""
    if "\n" in text or "\r" in text:
        raise ValueError("a line break cannot stand in a unit file")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _path(path: Path) -> str:
    return str(path).replace("%", "%%")
