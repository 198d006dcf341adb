"""What the pinned libraries can load, read off their folders. Importing them would take seconds, and the gateway needs no MLX."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def library() -> str:
    """The library that models run on, for messages."""
    try:
        return f"mlx-vlm {version('mlx-vlm')}"
    except PackageNotFoundError:
        return "mlx-vlm"


def runs(model_type: str, *, embeds: bool = False) -> bool:
    """Whether the library has code for an architecture. What cannot be looked up is left to the loader."""
    known = _folders("mlx_vlm")
    if not known:
        return True
    kind = model_type.lower()
    if embeds:
        kind = _table("mlx_vlm/embedding_loader.py", "EMBEDDING_MODEL_REMAPPING").get(kind, kind)
    return _table("mlx_vlm/utils.py", "MODEL_REMAPPING").get(kind, kind) in known


def transcribes(model_type: str) -> bool:
    """Whether an architecture is one of a recogniser's, of this engine or not."""
    return model_type.lower() in _folders("mlx_audio", "stt/models")


def _root(package: str) -> Path | None:
    found = importlib.util.find_spec(package)  # imports nothing
    return Path(found.origin).parent if found is not None and found.origin else None


@cache
def _folders(package: str, below: str = "models") -> frozenset[str]:
    root = _root(package)
    return frozenset(file.parent.name for file in (root / below).glob("*/__init__.py")) if root else frozenset()


@cache
def _table(file: str, name: str) -> dict[str, str]:
    """A table of names from the library's source. Empty if it is no longer there."""
    package, _, rest = file.partition("/")
    root = _root(package)
    if root is None or not (root / rest).is_file():
        return {}
    for node in ast.parse((root / rest).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            value = ast.literal_eval(node.value)
            return value if isinstance(value, dict) else {}
    return {}
