"""Finds model folders: one and two levels below the folders of the settings."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.folders.inspection import looks_like_a_model
from engine.folders.reading import Problem, entries

_FOREIGN: Final = (".", "$", "@", "__MACOSX", "lost+found", "System Volume Information")
"""Names of folders that a system keeps on a disk begin like this."""
Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class Place:
    """A folder among the models. `name` is its path below `root`: `name`, or `owner/name` as LM Studio stores them. `stamp`
    changes when a file in it does. `problem`: it cannot even be listed."""

    root: Path
    name: str
    folder: Path
    stamp: Stamp = ()
    problem: str | None = None


def stamp_of(files: Mapping[str, os.stat_result]) -> Stamp:
    """Names, sizes, times and numbers of a folder's files."""
    return tuple(sorted((name, it.st_size, it.st_mtime_ns, it.st_ino) for name, it in files.items()))


def places(root: Path) -> Iterator[Place]:
    """The model folders below `root`, and `root` itself if it is one. Raises `OSError` and `Problem` only for `root`."""
    files = entries(root)
    if looks_like_a_model(files):
        yield Place(root.parent, root.name, root, stamp_of(files))
        return
    for name in _folders(files):
        yield from _below(root, root / name, deeper=True)


def _below(root: Path, folder: Path, *, deeper: bool) -> Iterator[Place]:
    name = str(folder.relative_to(root))
    try:
        files = entries(folder)
    except FileNotFoundError:
        return  # it has just been removed
    except OSError as error:
        yield Place(root, name, folder, problem=f"the folder cannot be read: {error.strerror or error}")
        return
    except Problem:
        return  # more entries than any model has
    if looks_like_a_model(files):
        yield Place(root, name, folder, stamp_of(files))
    elif deeper:
        for inner in _folders(files):
            yield from _below(root, folder / inner, deeper=False)


def _folders(files: Mapping[str, os.stat_result]) -> list[str]:
    return sorted(name for name, it in files.items() if stat.S_ISDIR(it.st_mode) and not name.startswith(_FOREIGN))
