"""Who goes first, and who gives way: pure choices among sequences or jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Protocol, TypeVar

from engine.types import Priority
from engine.worker.scheduler.sequence import Phase, Sequence

AGEING_SECONDS: Final[Mapping[Priority, float]] = {"interactive": 10.0, "normal": 30.0, "batch": 60.0}
"""A sequence or job that has waited this long gets every second turn. One at a time: a crowd that has aged must not become the
rule."""
_RANKS: Final[Mapping[Priority, int]] = {"interactive": 0, "normal": 1, "batch": 2}


def rank(priority: Priority) -> int:
    """The smaller goes first."""
    return _RANKS[priority]


class Waits(Protocol):
    """A sequence or a job that has waited since `arrived`."""

    arrived: float

    @property
    def priority(self) -> Priority: ...


Waiter = TypeVar("Waiter", bound=Waits)


def first(ready: Iterable[Sequence], rows_of: Mapping[str, int], *, aged_first: bool) -> Sequence | None:
    """The sequence to begin or to go on with: by priority, then of the tenant with the fewest rows (`rows_of`), then by arrival.

    A preempted sequence keeps its arrival. Every second admission goes to an aged sequence if there is one (`aged_first`).
    """
    return min(
        ready,
        key=lambda one: (
            not (one.aged and aged_first),
            rank(one.priority),
            rows_of.get(one.tenant, 0),
            one.arrived,
            one.number,
        ),
        default=None,
    )


def overdue(ready: Iterable[Waiter], now: float) -> Waiter | None:
    """The one that has waited longest, of those that have waited too long."""
    late = (one for one in ready if now - one.arrived >= AGEING_SECONDS[one.priority])
    return min(late, key=lambda one: one.arrived, default=None)


def gives_way(running: Iterable[Sequence], *, to: Sequence | None = None) -> Sequence | None:
    """The running row to preempt: the latest arrival of the lowest priority.

    For another sequence only batch rows give way, and never to batch work. Without one (memory is short) any row may.
    """
    able = [one for one in running if one.preemptible and one.phase is Phase.RUNNING and not one.exhausted]
    if to is not None:
        if to.priority == "batch":
            return None
        able = [one for one in able if one.priority == "batch" and not one.aged]
    return max(able, key=lambda one: (not one.aged, rank(one.priority), one.arrived, one.number), default=None)
