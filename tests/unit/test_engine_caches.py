"""One file of the engine knows the libraries' cache classes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ENGINE = Path(__file__).parents[2] / "engine"


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported, and every name that is imported from one, in full."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{item.name}" for item in node.names)


def test_no_other_file_imports_them() -> None:
    knowing = {
        str(path.relative_to(ENGINE))
        for path in ENGINE.rglob("*.py")
        if any(
            name.startswith(("mlx_vlm.models.cache", "mlx_lm.models.cache", "mlx_audio.lm.cache"))
            for name in imported(ast.parse(path.read_text(encoding="utf-8")))
        )
    }
    assert knowing == {"worker/caches.py"}
