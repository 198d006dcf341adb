"""Which process uses a home: one `duet up`, one engine, one router.

A claim is a lock on a file in `$DUET_HOME/run`, with its holder's number and ports in it. The system frees the lock when the
process ends, however it ends, so a claim never outlives its holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from duet.errors import DuetError
from duet.home import own_folder

logger = logging.getLogger(__name__)

FOLDER: Final = "run"
UP: Final = "up"
"""The claim of `duet up`; those of the programs have the programs' names."""
LOOK_SECONDS: Final = 1.0
"""A claim is tried for this long: who looks at it holds it for a moment."""
ENDING_SECONDS: Final = 30.0
"""How long programs may take to end whose `duet up` was killed."""


class Holder(msgspec.Struct, frozen=True):
    """Who has a claim. `supervised`: a `duet up` started it, so it ends soon after that one has gone."""

    pid: int = 0
    ports: dict[str, int] = {}
    supervised: bool = False

    def __str__(self) -> str:
        where = ", ".join(f"{name} on port {port}" for name, port in self.ports.items())
        return f"process {self.pid}{f' ({where})' if where else ''}" if self.pid else "another process"


class InUse(DuetError):
    """Another process has the claim. The message names it."""


class Claim:
    """Held until `release`, or until the process ends."""

    def __init__(self, handle: int | None) -> None:
        self._handle = handle

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def claim(home: Path, name: str, ports: Mapping[str, int], *, supervised: bool = False) -> Claim:
    """Use `home` as its only `name`. Raises `InUse`.

    Where no lock can be had, on a read-only disk or one without locks, the claim holds nothing and the log says so.
    """
    try:
        handle = os.open(_file(own_folder(home, FOLDER), name), os.O_RDWR | os.O_CREAT | _SAFE, 0o600)
    except OSError as error:
        return _without(home, name, error)
    try:
        taken = _lock(handle, LOOK_SECONDS)
    except OSError as error:
        os.close(handle)
        return _without(home, name, error)
    if not taken:
        found = _read(handle)
        os.close(handle)
        raise _in_use(home, found)
    with contextlib.suppress(OSError):  # a full disk takes no text, and the lock holds without
        os.truncate(handle, 0)
        os.pwrite(handle, msgspec.json.encode(Holder(os.getpid(), dict(ports), supervised)), 0)
    return Claim(handle)


def holder(home: Path, name: str) -> Holder | None:
    """Who uses `home` as `name` now; None when nobody does or it cannot be told."""
    try:
        handle = os.open(_file(home / FOLDER, name), os.O_RDONLY | _SAFE)
    except OSError:
        return None
    try:
        return None if _lock(handle, 0, fcntl.LOCK_SH) else _read(handle)
    except OSError:
        return None
    finally:
        os.close(handle)


def wait_for_orphans(home: Path, names: Iterable[str]) -> None:
    """Return when no program is left of a `duet up` that was killed, at the latest after `ENDING_SECONDS`.

    Raises `InUse` when a `duet up` lives, or a program that was started alone.
    """
    deadline = time.monotonic() + ENDING_SECONDS
    for name in (UP, *names):
        while (found := holder(home, name)) is not None:
            if not found.supervised or time.monotonic() > deadline:
                raise _in_use(home, found)
            time.sleep(0.1)


def _in_use(home: Path, found: Holder) -> InUse:
    return InUse(f"{home} is in use by {found}: stop it, or set DUET_HOME to another folder for a second one")


_SAFE: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.lock"


def _lock(handle: int, patience_seconds: float, kind: int = fcntl.LOCK_EX) -> bool:
    """Whether the lock is ours. Raises `OSError` where there are no locks."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        else:
            return True


def _read(handle: int) -> Holder:
    try:
        return msgspec.json.decode(os.pread(handle, 4096, 0), type=Holder)
    except (OSError, msgspec.DecodeError):
        return Holder()


def _without(home: Path, name: str, error: OSError) -> Claim:
    logger.warning(
        "%s cannot be locked (%s): nothing keeps a second %s away",
        home / FOLDER,
        error.strerror,
        name,
        extra={"action": "claim_failed"},
    )
    return Claim(None)
