"""A device that follows a scheduler's plans to the letter, in sets of names: no arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import repeat

from engine.worker.scheduler.plan import Drawn, Plan, StepResult


class Device:
    """As the runner does, it reads a step's tokens in the next tick, or at once where a row draws its first one.

    `gains` says how many tokens a row gains in a step, row by row: one, or several as with speculation, but never more than its
    `limits` allow. A row that turns out to be complete when its tokens are read gains none.
    """

    def __init__(self, limits: Mapping[str, int], gains: Iterator[int] | None = None) -> None:
        self.limits, self.gains = limits, gains or repeat(1)
        self.rows: set[str] = set()
        self.drawn = Counter[str]()
        """Tokens that were read, by row."""
        self.in_flight: frozenset[str] = frozenset()

    def execute(self, plan: Plan) -> StepResult:
        assert plan.preempted <= plan.leave <= self.rows
        if plan.decode:
            waste = [name for name in self.rows - plan.leave if self._left(name) <= (name in self.in_flight)]
            assert not waste, f"{waste} take part in a step, and every token of theirs is drawn or in flight"
        read = list(self._read()) if plan.leave or not plan.decode else []
        self.rows -= plan.leave
        if plan.decode:
            assert self.rows
            first = any(not self.drawn[name] for name in self.rows)
            read += self._read()
            self.in_flight = frozenset(name for name in self.rows if self._left(name))
            if first:
                read += self._read()
        for chunk in plan.prefill:
            if chunk.joins:
                self.rows.add(chunk.id)
            if chunk.draws:
                self.drawn[chunk.id] += 1
                read.append(Drawn(chunk.id, 0))
        return StepResult(tuple(read), self.in_flight)

    def _left(self, name: str) -> int:
        return self.limits[name] - self.drawn[name]

    def _read(self) -> Iterator[Drawn]:
        flying, self.in_flight = sorted(self.in_flight), frozenset()
        for name in flying:
            gained = min(next(self.gains), self._left(name))
            self.drawn[name] += gained
            yield from [Drawn(name, 0)] * gained
