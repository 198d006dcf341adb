"""Every place of the pinned libraries that can run code of a model folder is known. An upgrade that adds one fails here.

`code_points.txt` lists them. Before a new one is added to it: does `engine.worker.runtime.view` keep the folder's code from it,
and does `engine.worker.runtime.wall` refuse what it would do?
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

LISTED = Path(__file__).with_name("code_points.txt")
LIBRARIES = ("mlx_vlm", "mlx_audio", "transformers", "tokenizers", "safetensors", "huggingface_hub")
CALLS = frozenset({
    "spec_from_file_location", "exec_module", "load_module", "import_module", "__import__", "exec", "eval", "compile",
    "run_path", "run_module", "get_class_from_dynamic_module", "get_class_in_module", "get_cached_module_file",
    "ExtensionFileLoader", "SourceFileLoader", "CDLL", "Unpickler", "unsafe_load", "full_load",
})  # fmt: skip
LOADS = frozenset(
    {"pickle", "torch", "np", "numpy", "joblib", "dill", "cloudpickle", "marshal", "shelve", "yaml", "jnp"}
)
"""Modules whose `load` or `loads` may run what it reads."""


_MENTION = re.compile(
    r"trust_remote_code|allow_pickle|sys\.path|(?<![.\w])(exec|eval|compile)\(|\b(pickle|torch|np|numpy|joblib|dill|cloudpickle"
    rf"|marshal|shelve|yaml|jnp)\.loads?\(|\b({'|'.join(sorted(CALLS - {'exec', 'eval', 'compile'}))})\b"
)


def points(package: str) -> Iterator[str]:
    """Every place of a package that may run code, as `file function what`."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    for file in sorted(root.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "tests" not in file.parts and _MENTION.search(text):
            yield from _points(ast.parse(text), f"{package}/{file.relative_to(root)}", "-")


def _points(node: ast.AST, file: str, function: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        inner = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if what := _what(child):
            yield f"{file} {inner} {what}"
        yield from _points(child, file, inner)


def _what(node: ast.AST) -> str | None:
    """What a place does, if it may run code. `re.compile`, `mx.compile` and `model.eval()` do not."""
    match node:
        case ast.keyword(arg="trust_remote_code" | "allow_pickle" as name, value=value):
            known = isinstance(value, ast.Constant) and value.value in (False, None)
            return None if known else f"{name}={ast.unparse(value)}"
        case ast.Assign(targets=[ast.Subscript(slice=ast.Constant(value="trust_remote_code"))], value=value):
            return f"[trust_remote_code]={ast.unparse(value)}"
        case ast.Call(args=[ast.Constant(value="trust_remote_code"), ast.Constant(value=True), *_]):
            return f"{ast.unparse(node.func)}(trust_remote_code, True)"
        case ast.Call(func=ast.Name(id=name)) if name in CALLS:
            return name
        case ast.Call(func=ast.Attribute(attr=name, value=value)):
            module = ast.unparse(value)
            if module == "sys.path" or (name in ("load", "loads") and module in LOADS):
                return f"{module}.{name}"
            return name if name in CALLS - {"compile", "eval"} else None
    return None


def test_no_place_that_can_run_code_is_unknown() -> None:
    found = sorted({point for package in LIBRARIES for point in points(package)})
    listed = LISTED.read_text(encoding="utf-8").split("\n")[:-1]
    new = sorted(set(found) - set(listed))
    assert not new, "places that may run code of a model folder: read them, then list them in code_points.txt"
    gone = sorted(set(listed) - set(found))
    assert not gone, "code_points.txt lists places that are gone"
