"""Work that is not a token sequence, or not yet, runs as a job: in steps between the ticks of the decoding batch.

Whose step is next is a pure decision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from engine.types import Priority
from engine.worker.scheduler.order import overdue, rank

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Job(Protocol[Result_co]):
    """One request. A step should take well under a second, so that streams do not stall."""

    id: str
    priority: Priority
    tenant: str

    def step(self) -> Result_co | None:
        """Do a piece of work; the result when that was the last. Raises `DuetError` for this request alone."""
        ...


@dataclass
class Queued(Generic[Result]):
    """A job that has waited for a turn since `arrived`. An `aged` one has waited too long: it has every second turn."""

    job: Job[Result]
    arrived: float
    aged: bool = False

    @property
    def priority(self) -> Priority:
        return self.job.priority


class Jobs(Generic[Result]):
    """The worker's jobs. A job ends by being forgotten. Owned by the worker's loop.

    Turns go by priority, then to the tenant whose last turn is longest ago, then round robin: a long recording holds up no short
    one. Every second turn goes to the aged job, if there is one. There is one at a time, and it stays aged until it ends.
    """

    def __init__(self) -> None:
        self._queue: dict[str, Queued[Result]] = {}
        self._turns = 0
        self._turn_of: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, job: Job[Result], now: float) -> None:
        self._queue[job.id] = Queued(job, now)

    def forget(self, job_id: str) -> None:
        """It ended or was cancelled. An unknown id has ended already."""
        self._queue.pop(job_id, None)
        if not self._queue:
            self._turn_of.clear()

    def ready(self, may: Callable[[Queued[Result]], bool]) -> list[Queued[Result]]:
        """The jobs that `may` have a turn now, in order of arrival."""
        return [one for one in self._queue.values() if may(one)]

    def next(self, now: float, may: Callable[[Queued[Result]], bool], *, paused: bool = False) -> Job[Result] | None:
        """The job whose turn it is. It then waits anew, behind all others. While batch work is `paused`, it does not age, and
        keeps no other job from ageing."""
        ageing = [one for one in self._queue.values() if not (paused and one.priority == "batch")]
        if not any(one.aged for one in ageing) and (late := overdue(ageing, now)):
            late.aged = True
        chosen = min(self.ready(may), key=self._order, default=None)
        if chosen is None:
            return None
        job = chosen.job
        self._turns += 1
        self._turn_of[job.tenant] = self._turns
        chosen.arrived = now
        self._queue[job.id] = self._queue.pop(job.id)
        return job

    def _order(self, one: Queued[Result]) -> tuple[bool, int, int]:
        return not (one.aged and self._turns % 2), rank(one.priority), self._turn_of.get(one.job.tenant, 0)
