"""The scheduling page names constants of the code: each has the value and the file that the page says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/scheduling.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([A-Z][A-Z_]+)(?: = ([\d.]+))?` in `([\w/.]+\.py)`", PAGE)


def constants(path: Path) -> dict[str, ast.expr]:
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found[node.target.id] = node.value
    return found


def test_the_page_names_constants() -> None:
    assert len(NAMED) >= 12


@pytest.mark.parametrize(("name", "value", "file"), NAMED, ids=[name for name, _, _ in NAMED])
def test_a_constant_is_what_the_page_says(name: str, value: str, file: str) -> None:
    found = constants(ROOT / "engine/worker" / file)[name]
    if value:
        assert ast.literal_eval(found) == ast.literal_eval(value)


def test_ages_are_those_of_the_page() -> None:
    ages = ast.literal_eval(constants(ROOT / "engine/worker/scheduler/order.py")["AGEING_SECONDS"])
    said = re.search(r"waited for (\d+) s \(interactive\), (\d+) s \(normal\) or (\d+) s \(batch\)", PAGE)
    assert said is not None
    assert [ages[name] for name in ("interactive", "normal", "batch")] == [float(seconds) for seconds in said.groups()]
