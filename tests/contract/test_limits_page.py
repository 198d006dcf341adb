"""docs/limits.md says what the code does: every constant that it names exists and has the value of its row."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "s": 1, "min": 60, "h": 3600, "days": 86_400, "%": 0.01}


def rows() -> list[tuple[str, str, str]]:
    """Field, limit and constant of each row of the page's tables."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and cells[0] != "field" and not set(line) <= set("|-"):
            assert len(cells) == 4, line
            found.append((cells[0], cells[1], cells[3].strip("`")))
    return found


def said(limit: str) -> float:
    """The number at the beginning of a limit, in its unit: "64 MiB", "1,500 tokens", "300 s"."""
    match = re.match(r"([\d,]+(?:\.\d+)?)(?: ?(\S+))?", limit)
    assert match, f"{limit!r} does not begin with a number"
    return float(match[1].replace(",", "")) * UNITS.get((match[2] or "").rstrip(",;"), 1)


def value(constant: str) -> Any:
    """A constant of a module, a field of one, or the default of a setting."""
    module, rest = constant, list[str]()
    while True:
        try:
            found: Any = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, name = module.rpartition(".")
            assert module, f"{constant}: there is no such module"
            rest.insert(0, name)
    for name in rest:
        fields = getattr(found, "model_fields", {})
        assert name in fields or hasattr(found, name), f"{constant}: there is no such constant"
        found = fields[name].default if name in fields else getattr(found, name)
    return found


@pytest.mark.parametrize(("field", "limit", "constant"), rows(), ids=lambda text: text[:60])
def test_each_limit_is_that_of_its_constant(field: str, limit: str, constant: str) -> None:
    assert value(constant) == pytest.approx(said(limit)), f"{field}: {limit}"


def test_a_limit_is_in_one_row_alone() -> None:
    constants = [constant for _, _, constant in rows()]
    assert len(constants) == len(set(constants)) > 40
