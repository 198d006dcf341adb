"""Files of a model folder are read only if they are regular, and only up to a bound."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final

CONFIG_BYTES: Final = 16 << 20
"""The largest JSON file of settings."""
TOKENIZER_BYTES: Final = 256 << 20
"""The largest tokenizer.json or other list of tokens."""
DEPTH: Final = 32
"""Levels of lists and objects in a file of settings."""
FILES: Final = 10_000
"""Entries of a folder that are looked at."""
_DATALESS: Final = 0x40000000  # st_flags of macOS: the content is in iCloud only, and reading it waits for the network
_KINDS: Final = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


class Problem(Exception):
    """Why a folder cannot be used. The message names the file, the cause and what to do."""


def entries(folder: Path) -> dict[str, os.stat_result]:
    """Every entry by name, links followed. A link that leads nowhere has the link's own status. Raises `OSError`, `Problem`."""
    found: dict[str, os.stat_result] = {}
    with os.scandir(folder) as scan:
        for entry in scan:
            if len(found) == FILES:
                raise Problem(f"{folder.name} has more than {FILES} entries: no model has")
            try:
                found[entry.name] = entry.stat()
            except OSError:
                found[entry.name] = entry.stat(follow_symlinks=False)
    return found


def check_regular(name: str, status: os.stat_result) -> None:
    """Raises `Problem` for what is no file with content on this disk."""
    if stat.S_ISLNK(status.st_mode):
        raise Problem(f"{name} is a link that leads nowhere: download it again")
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        raise Problem(f"{name} is {kind}, not a file: replace it")
    if getattr(status, "st_flags", 0) & _DATALESS:
        raise Problem(f"{name} is in iCloud only: download it to this disk")
    if status.st_size == 0:
        raise Problem(f"{name} is empty: download it again")


def open_regular(path: Path) -> BinaryIO:
    """The file, opened so that a pipe or a device holds nobody up. Raises `Problem`."""
    try:
        check_regular(path.name, path.stat())
        handle = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except FileNotFoundError as error:
        gone = "is a link that leads nowhere" if path.is_symlink() else "is missing"
        raise Problem(f"{path.name} {gone}: download it again") from error
    except OSError as error:
        raise Problem(f"{path.name} cannot be read: {error.strerror or error}") from error
    try:
        check_regular(path.name, os.fstat(handle.fileno()))  # it may have been replaced since
    except BaseException:
        handle.close()
        raise
    return handle


def read_bytes(path: Path, limit: int) -> bytes:
    """The whole file. Raises `Problem` if it has more than `limit` bytes, or is no file of a model at all."""
    with open_regular(path) as handle:
        try:
            data = handle.read(limit + 1)
        except OSError as error:
            raise Problem(f"{path.name} cannot be read: {error.strerror or error}") from error
    if len(data) > limit:
        raise Problem(f"{path.name} has more than {limit >> 20} MB: no model has")
    refuse_stand_in(path.name, data[:512])
    return data


def refuse_stand_in(name: str, beginning: bytes) -> None:
    """Raises `Problem` for what stands where a file should be: a Git LFS pointer, a page that says why a download failed."""
    if beginning.startswith(b"version https://git-lfs"):
        raise Problem(f"{name} is a Git LFS pointer, not the file: run `git lfs pull` in its folder")
    if beginning.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html", b"<?xml")):
        raise Problem(f"{name} is a web page, not the file: download it again")


def read_json(path: Path, limit: int = CONFIG_BYTES) -> Any:
    """A JSON file, with or without a byte order mark. Raises `Problem`."""
    return parse_json(path.name, read_bytes(path, limit))


def parse_json(name: str, data: bytes) -> Any:
    """The value of a JSON file's content. Raises `Problem`."""
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except RecursionError as error:
        raise Problem(f"{name} is nested deeper than {DEPTH} levels: no model's is") from error
    except ValueError as error:
        raise Problem(f"{name} is no JSON ({error}): download it again") from error
    if _is_deep(value):
        raise Problem(f"{name} is nested deeper than {DEPTH} levels: no model's is")
    return value


def read_object(path: Path, limit: int = CONFIG_BYTES) -> dict[str, Any]:
    """A JSON file that holds an object. Raises `Problem`."""
    value = read_json(path, limit)
    if not isinstance(value, dict):
        raise Problem(f"{path.name} is not a JSON object: download it again")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEPTH + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Iterable[Any]:
    """The lists and objects right inside a list or an object."""
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (inner for inner in values if isinstance(inner, dict | list))
