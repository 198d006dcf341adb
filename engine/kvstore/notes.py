"""The notes that lie in a directory of KV as JSON: what it holds, what was written today, and what its owner may take.

A note is written to a file `NAME.half` and renamed, so a reader sees the old note or the new one. A note that cannot be read
counts as missing.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_ABOUT: Final = "about.json"
_WRITTEN: Final = "written.json"
_LEASE: Final = "lease.json"


def read_about(folder: Path) -> dict[str, Any] | None:
    """What a directory says about itself: `model` and `layout`. None if it cannot be read."""
    return _read(folder / _ABOUT)


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Raises OSError."""
    _write(folder / _ABOUT, json.dumps(about, indent=1) + "\n")


def forget_about(folder: Path) -> None:
    """Remove what a directory says about itself. Raises OSError."""
    (folder / _ABOUT).unlink(missing_ok=True)


class WrittenToday:
    """Bytes written to the files of a directory, by days of local time. They outlive everything but the directory."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _WRITTEN
        found = _read(self._path) or {}
        self._days = {day: size for day, size in found.items() if isinstance(size, int)}

    @property
    def bytes(self) -> int:
        """Bytes written today, whatever became of them."""
        return self._days.get(today(), 0)

    def add(self, size: int) -> None:
        """Count `size` more bytes. Raises OSError."""
        self._days = {today(): self.bytes + size}
        _write(self._path, json.dumps(self._days))


def read_lease(folder: Path) -> tuple[int, int]:
    """What the owner of a directory may take: bytes on disk, and bytes written a day. (0, 0) when there is no lease."""
    lease = _read(folder / _LEASE) or {}
    return int(lease.get("disk_bytes", 0)), int(lease.get("write_bytes", 0))


def write_lease(folder: Path, disk_bytes: int, write_bytes: int) -> None:
    """Note what the next owner of a directory may take, for other gateways of the same home. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(folder / _LEASE, json.dumps({"disk_bytes": disk_bytes, "write_bytes": write_bytes}))


def today() -> str:
    return time.strftime("%Y-%m-%d")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, text: str) -> None:
    half = path.with_name(f"{path.name}.half")
    try:
        half.write_text(text, encoding="utf-8")
        half.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            half.unlink(missing_ok=True)
        raise
