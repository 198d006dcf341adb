"""The figures as a document: which weights there are, and what was measured on them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

WEIGHTS: Final = (".onnx", ".safetensors")
DIGITS: Final = 6
NORMAL_95: Final = 1.959964
"""95% of a normal distribution lies within this many standard deviations of its mean."""


class Weights(msgspec.Struct):
    bytes: int
    sha256: str


class Model(msgspec.Struct):
    """`bytes` counts all files of the folder, `digest` covers their names and contents. `weights` is by file name."""

    bytes: int
    digest: str
    weights: dict[str, Weights]


class Measured(msgspec.Struct):
    """One measurement: `digests` of the measured models, SHA-256 of the `data`, the `command` and its `figures`."""

    digests: dict[str, str]
    data: dict[str, str]
    command: str
    figures: dict[str, Any]


class Document(msgspec.Struct):
    models: dict[str, Model]
    measured: dict[str, Measured]

    def current(self, name: str) -> Measured | None:
        """The figures of a measure; None if there are none, or if they belong to weights that no longer exist."""
        found = self.measured.get(name)
        known = {model: entry.digest for model, entry in self.models.items()}
        return found if found is not None and found.digests.items() <= known.items() else None


def read(path: Path) -> Document:
    """Read a document. Raises `OSError` and `msgspec.MsgspecError`."""
    return msgspec.json.decode(path.read_bytes(), type=Document)


def write(path: Path, document: Document) -> None:
    """Write the document atomically, and its folder if it is missing. Models and measures are sorted by name. Fractions
    keep six digits."""
    ordered = Document(dict(sorted(document.models.items())), dict(sorted(document.measured.items())))
    content = msgspec.json.format(msgspec.json.encode(_rounded(msgspec.to_builtins(ordered))), indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(path.name + ".half")
    half.write_bytes(content + b"\n")
    half.replace(path)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return round(value, DIGITS) if isinstance(value, float) else value


def models_in(folder: Path) -> dict[str, Model]:
    """Every model folder in `folder`, by name."""
    return {path.name: _model(path) for path in sorted(folder.iterdir()) if path.is_dir()}


def _model(folder: Path) -> Model:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    weights = {
        path.relative_to(folder).as_posix(): Weights(path.stat().st_size, file_digest(path))
        for path in files
        if path.suffix in WEIGHTS
    }
    return Model(sum(path.stat().st_size for path in files), files_digest(files, folder), weights)


def files_digest(paths: Sequence[Path], root: Path | None = None) -> str:
    """SHA-256 of the files' names (relative to `root` if given) and contents, in this order."""
    digest = hashlib.sha256()
    for path in paths:
        name = path.relative_to(root).as_posix() if root else path.name
        digest.update(f"{name}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def counted(right: int, of: int) -> dict[str, Any]:
    """The share of right ones among `of` independent trials, with its 95% interval (Wilson 1927). Raises
    ZeroDivisionError if `of` is 0."""
    share, z2 = right / of, NORMAL_95**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    return {"right": right, "of": of, "share": share, "interval": [max(0.0, middle - half), min(1.0, middle + half)]}


def cer_arms(arms: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The part of `duet bench cer`'s arms that the page shows."""
    return [
        {
            "arm": arm["arm"],
            "glossary": arm["glossary"],
            "groups": {name: _group(found) for name, found in arm["groups"].items()},
        }
        for arm in arms
    ]


def _group(found: dict[str, Any]) -> dict[str, Any]:
    kept = (
        *("utterances", "cer_interval", "difference_interval", "term_recall", "term_precision"),
        *("better", "worse", "protected_changed"),
    )
    cer = found["cer"]
    errors = {name: cer[name] for name in ("substitutions", "insertions", "deletions", "units")}
    return {"cer": cer["rate"], **errors, **{name: found[name] for name in kept}}
