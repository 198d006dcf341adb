"""Who begins next, and who gives way: pure choices among sequences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Protocol, TypeVar

from engine.worker.scheduler.sequence import Phase, Priority, Sequence

AGEING_SECONDS: Final = {Priority.INTERACTIVE: 10.0, Priority.NORMAL: 30.0, Priority.BATCH: 60.0}
"""After so long a sequence has every second turn, one at a time: a crowd that has aged must not become the rule."""


class Waits(Protocol):
    """Whoever waits since `arrived`: a sequence or a job."""

    arrived: float

    @property
    def priority(self) -> Priority: ...


Waiter = TypeVar("Waiter", bound=Waits)


def first(ready: Iterable[Sequence], rows_of: Mapping[str, int], *, aged_first: bool) -> Sequence | None:
    """The one to begin or to go on with: by priority, then of the tenant with the fewest rows (`rows_of`), then in order of
    arrival. What was preempted keeps its arrival. Of two beginnings one is an aged one's (`aged_first`)."""
    return min(
        ready,
        key=lambda one: (
            not (one.aged and aged_first),
            one.priority,
            rows_of.get(one.tenant, 0),
            one.arrived,
            one.number,
        ),
        default=None,
    )


def overdue(ready: Iterable[Waiter], now: float) -> Waiter | None:
    """Who has waited longest of those that have waited too long."""
    late = (one for one in ready if now - one.arrived >= AGEING_SECONDS[one.priority])
    return min(late, key=lambda one: one.arrived, default=None)


def gives_way(running: Iterable[Sequence], *, to: Sequence | None = None) -> Sequence | None:
    """The running row to preempt: the last of the least priority. For another sequence only batch rows give way, and not to
    batch; without one (memory is short) any does."""
    able = [one for one in running if one.preemptible and one.phase is Phase.RUNNING and not one.exhausted]
    if to is not None:
        if to.priority is Priority.BATCH:
            return None
        able = [one for one in able if one.priority is Priority.BATCH and not one.aged]
    return max(able, key=lambda one: (not one.aged, one.priority, one.arrived, one.number), default=None)
