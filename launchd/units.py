"""Service definitions as text: launchd property lists for macOS, systemd user units for Linux. Pure functions."""

from __future__ import annotations

import plistlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LABEL = "dev.duet"


@dataclass(frozen=True)
class Service:
    """One program that runs at login and is restarted after a crash. Output goes to `log`."""

    name: str
    description: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path

    @property
    def label(self) -> str:
        """launchd's label."""
        return f"{LABEL}.{self.name}"

    @property
    def unit(self) -> str:
        """systemd's unit name."""
        return f"duet-{self.name}.service"


def plist(service: Service) -> bytes:
    """launchd.plist(5). Restarted unless it ended well (a configuration error would come back: every 30 s at most)."""
    return plistlib.dumps(
        {
            "Label": service.label,
            "ProgramArguments": list(service.argv),
            "EnvironmentVariables": dict(service.environment),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 30,
            "ExitTimeOut": 15,
            "ProcessType": "Interactive",
            "StandardOutPath": str(service.log),
            "StandardErrorPath": str(service.log),
            "WorkingDirectory": "/",
            "Umask": 0o077,
        }
    )


def systemd_unit(service: Service) -> str:
    """systemd.service(5). Exit codes 2 and 78 are usage and configuration errors: another start would end the same way."""
    environment = "\n".join(f"Environment={_quoted(f'{name}={value}')}" for name, value in service.environment.items())
    return f"""\
[Unit]
Description={service.description}
StartLimitIntervalSec=300
StartLimitBurst=10

[Service]
Type=exec
ExecStart={" ".join(_quoted(argument) for argument in service.argv)}
{environment}
Restart=on-failure
RestartSec=2
RestartPreventExitStatus=2 78
TimeoutStopSec=15
UMask=0077
StandardOutput=append:{_path(service.log)}
StandardError=append:{_path(service.log)}

[Install]
WantedBy=default.target
"""


def _quoted(text: str) -> str:
    """systemd's quoting: `%` and `$` begin expansions, backslash and quote need an escape."""
    if "\n" in text or "\r" in text:
        raise ValueError("a line break cannot stand in a unit file")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def _path(path: Path) -> str:
    return str(path).replace("%", "%%")
