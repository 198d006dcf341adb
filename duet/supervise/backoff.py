"""When a process that ended is started again."""

from __future__ import annotations

HEALTHY_SECONDS = 60.0
"""A process that lived this long starts its back-off anew."""


def restart_delay_seconds(failures_in_a_row: int) -> float:
    """Exponential back-off: 0 at first, then 0.5, 1, 2 … at most 30."""
    return 0.0 if failures_in_a_row <= 1 else float(min(30.0, 0.5 * 2 ** (failures_in_a_row - 2)))
