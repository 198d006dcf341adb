"""How many examples a property draws: all of them, or a quarter in `make unit`."""

from __future__ import annotations

from hypothesis import settings

FULL, QUICK = 100, 25
"""Examples of a property that names no number, in the profiles `duet` and `quick`."""


def examples(count: int) -> int:
    """The share of `count` that the loaded profile draws."""
    return max(1, count * settings.default.max_examples // FULL)
