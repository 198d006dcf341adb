"""Where settings come from: config.toml and environment variables, as plain values. `duet.settings` says what they may be."""

from __future__ import annotations

import codecs
import difflib
import os
import stat
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

PREFIX = "DUET_"
# Our environment variables that are not settings of the services.
NOT_SETTINGS = frozenset({"DUET_HOME", "DUET_LIFELINE", "DUET_TEST_AUDIO", "DUET_TEST_EVAL"})
MAX_CONFIG_BYTES = 1 << 20


class SettingsError(Exception):
    """The message names the key, where it was set, and what is wrong with it."""


def home_folder(environ: Mapping[str, str]) -> Path:
    try:
        return Path(environ.get("DUET_HOME") or Path.home() / ".duet").expanduser().absolute()
    except (RuntimeError, OSError) as error:  # no such user, no HOME, or no working directory any more
        raise SettingsError(f"there is no home folder ({error}): set DUET_HOME to an absolute path") from error


def from_file(path: Path) -> dict[str, Any]:
    """The values of a TOML file; none when there is no file."""
    try:
        data = _read(path)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise SettingsError(f"{path} is a link to a file that does not exist") from error
        return {}
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
    try:
        values = tomllib.loads(data.decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        line = data.count(b"\n", 0, error.start) + 1
        found = "it is UTF-16" if wide else f"line {line} is not"
        raise SettingsError(f"{path} must be UTF-8, and {found}: save it as UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError(f"{path}: {error}") from error
    if "home" in values:
        raise SettingsError(f"{path}: home is set by DUET_HOME, not in the file inside it")
    return values


def _read(path: Path) -> bytes:
    # O_NONBLOCK: a pipe in its place must not hold us up.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise SettingsError(f"{path} is no file")
        data = b""
        while len(data) <= MAX_CONFIG_BYTES and (piece := os.read(handle, MAX_CONFIG_BYTES + 1)):
            data += piece
    finally:
        os.close(handle)
    if len(data) > MAX_CONFIG_BYTES:
        raise SettingsError(f"{path} is longer than {MAX_CONFIG_BYTES:,} bytes")
    return data


def from_environment(environ: Mapping[str, str], known: Collection[str]) -> dict[str, Any]:
    """The values of those variables that `known` names, in any case, in the file's sections."""
    values: dict[str, Any] = {}
    for name, value in environ.items():
        if name.upper() in known:
            *sections, key = place(name)
            inner = values
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[key] = value
    return values


def place(variable: str) -> list[str]:
    """The sections of a variable's setting, and its key."""
    return variable[len(PREFIX) :].lower().split("__")


def unknown(environ: Mapping[str, str], known: Collection[str]) -> list[str]:
    """A sentence for each variable that looks like a setting of ours and is none."""
    odd = (
        name for name in environ if name.startswith(PREFIX) and name not in NOT_SETTINGS and name.upper() not in known
    )
    return [f"{name} is set and has no effect: there is no such setting{_nearest(name, known)}" for name in sorted(odd)]


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.7)
    return f"; the nearest one is {near[0]}" if near else "; `duet config` shows all"
