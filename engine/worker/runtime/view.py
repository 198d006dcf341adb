"""What the libraries see of a model folder: a folder of our own with the files that were checked, and nothing else.

So they meet no code, no pickle, no copy of the weights and no name that they would take for a pattern. Settings are written
anew without the keys that name code; large files are links.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from engine.folders.inspection import Contents
from engine.folders.reading import CONFIG_BYTES, Problem, check_regular, entries, parse_json, read_bytes
from engine.folders.settings import without_code
from engine.folders.templates import FILE, TEMPLATE_BYTES
from engine.folders.weights import INDEX, choose, is_weights
from engine.worker.runtime.wall import READABLE

_PREFIX: Final = "duet-model-"
_LISTS: Final = ("tokenizer.json", "vocab.json")
"""JSON that is too large to be written anew, and holds tokens only."""
_MODULE: Final = re.compile(r"\d+_[A-Za-z]+")
"""A part of a sentence-transformers model, such as 1_Pooling or 2_Dense."""
_BOM: Final = b"\xef\xbb\xbf"


@contextmanager
def shown_to_libraries(folder: Path, contents: Contents) -> Iterator[Path]:
    """A folder that lasts as long as the context, for libraries that load `folder`. Raises `Problem` and `OSError`."""
    _sweep()
    view = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    try:
        fill(view, folder, contents)
        yield view
    finally:
        shutil.rmtree(view, ignore_errors=True)


def fill(view: Path, folder: Path, contents: Contents) -> None:
    """Put what may be seen of `folder` into `view`. Raises `Problem` and `OSError`."""
    for name in contents.weights.headers:
        (view / name).symlink_to((folder / name).resolve())
    for name, status in contents.files.items():
        if name.startswith(".") or not name.endswith(READABLE) or is_weights(name):
            continue
        if name != INDEX or contents.weights.by_index:
            _show(view / name, folder / name, status)
    _write(view / "config.json", without_code(contents.config))
    if contents.tokenizer:
        _write(view / "tokenizer_config.json", without_code(_plain_tokenizer(contents)))
    if contents.template and FILE not in contents.files and not contents.config.get("vision_config"):
        (view / FILE).write_text(contents.template, encoding="utf-8")
    for name in contents.files:
        if _MODULE.fullmatch(name) and (folder / name).is_dir():
            _show_module(view / name, folder / name)


def _show(target: Path, file: Path, status: os.stat_result) -> None:
    """One file. A JSON file that is none is left out: those that matter were checked."""
    try:
        check_regular(file.name, status)
        if file.suffix == ".json" and file.name not in _LISTS:
            _write(target, without_code(parse_json(file.name, read_bytes(file, CONFIG_BYTES))))
            return
        if file.suffix == ".jinja":
            target.write_bytes(read_bytes(file, TEMPLATE_BYTES).removeprefix(_BOM))
            return
    except Problem:
        return
    with file.open("rb") as handle:
        marked = handle.read(3) == _BOM
    if marked:
        target.write_bytes(file.read_bytes().removeprefix(_BOM))
    else:
        target.symlink_to(file.resolve())


def _show_module(target: Path, folder: Path) -> None:
    target.mkdir()
    files = entries(folder)
    for name, status in files.items():
        if name.endswith(".json") and not name.startswith("."):
            _show(target / name, folder / name, status)
    if any(map(is_weights, files)):
        for name in choose(folder, files).headers:
            (target / name).symlink_to((folder / name).resolve())


def _plain_tokenizer(contents: Contents) -> Mapping[str, Any]:
    """The tokenizer's settings. A class that is code of the folder gives way to the one that reads tokenizer.json alone."""
    import transformers

    kind = contents.tokenizer.get("tokenizer_class")
    if (
        not contents.tokenizer.get("auto_map")
        or "tokenizer.json" not in contents.files
        or hasattr(transformers, str(kind))
    ):
        return contents.tokenizer
    return {**contents.tokenizer, "tokenizer_class": "PreTrainedTokenizerFast"}


def _write(target: Path, value: Any) -> None:
    target.unlink(missing_ok=True)
    target.write_text(json.dumps(value), encoding="utf-8")


def _sweep() -> None:
    """Remove what workers left that were killed while they loaded."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        number = left.name.removeprefix(_PREFIX).partition("-")[0]
        if number.isdigit() and not _lives(int(number)):
            shutil.rmtree(left, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True
