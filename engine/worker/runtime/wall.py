"""The second wall: while a model loads, the process itself refuses to read or run code that lies in the model's folder.

The first wall is `view`: the libraries never see the folder. This one stands whatever a library does, also after an upgrade that
brings another way to code (https://docs.python.org/3/library/audit_events.html).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from engine.folders.reading import Problem

READABLE: Final = (".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken")
"""The endings of files that a model needs."""
_forbidden: tuple[str, ...] = ()
_installed = False


class ForbiddenCode(Problem):
    """A library was about to run code of a model's folder. Nothing of it ran."""


@contextmanager
def no_code_of(*folders: Path) -> Iterator[None]:
    """Nothing of the folders is run, imported or linked, and nothing unpickled: `ForbiddenCode` is raised where it is tried.

    Audit hooks cannot be removed, so one is installed once and does nothing outside of this context.
    """
    global _forbidden, _installed  # noqa: PLW0603 - a process has one list of audit hooks
    if not _installed:
        sys.addaudithook(_watch)
        _installed = True
    _forbidden = tuple(f"{os.path.realpath(folder)}{os.sep}" for folder in (*folders, _transformers_cache()))
    try:
        yield
    finally:
        _forbidden = ()


def _transformers_cache() -> Path:
    """Where transformers copies a folder's code before it imports it."""
    from transformers.utils import HF_MODULES_CACHE

    return Path(HF_MODULES_CACHE)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _forbidden:
        return
    match event:
        case "exec":
            name, readable = getattr(arguments[0], "co_filename", None), False
        case "compile" | "import":
            name, readable = arguments[1], False
        case "open" | "ctypes.dlopen":
            name, readable = arguments[0], event == "open"
        case "pickle.find_class":
            raise ForbiddenCode(f"a pickle names {arguments[0]}.{arguments[1]}: pickles of a model are never opened")
        case _:
            return
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if not isinstance(name, str) or not os.path.realpath(name).startswith(_forbidden):
        return
    if not (readable and name.endswith(READABLE)):
        raise ForbiddenCode(f"{os.path.basename(name)} is code of the model's folder, which is never run")  # noqa: PTH119
