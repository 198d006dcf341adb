"""Who runs next: a pure decision per tick. Knows no MLX, no text, no clock.

tick:  plan = scheduler.plan()          what to do, as a value
       result = runner.execute(plan)    the device does it
       scheduler.apply(plan)            states follow
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from engine.worker.scheduler.sequence import Phase, Sequence


@dataclass(frozen=True)
class PrefillChunk:
    """Run prompt tokens start..stop of one sequence; `joins` when that completes its prefill."""

    id: str
    start: int
    stop: int
    joins: bool


@dataclass(frozen=True)
class Plan:
    """One tick: rows leave, the others decode one token, then prompt chunks run and complete rows join."""

    leave: frozenset[str]
    decode: bool
    prefill: tuple[PrefillChunk, ...]

    @property
    def empty(self) -> bool:
        return not (self.leave or self.decode or self.prefill)


class Scheduler:
    """Sequences of one worker, first come first served, with prefill cut into chunks between decode steps.

    Owned by the worker's loop. Invariant: `running` are exactly the rows of the device's batch after `apply`.
    """

    def __init__(self, *, max_rows: int, chunk_tokens: int) -> None:
        self._max_rows, self._chunk_tokens = max_rows, chunk_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: dict[str, Sequence] = {}
        self._leaving: set[str] = set()

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._running or self._leaving)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def end(self, sequence_id: str) -> None:
        """Finished, failed or cancelled, in whatever phase. Unknown ids are ended already."""
        if sequence := self._running.pop(sequence_id, None):
            sequence.phase = Phase.ENDED
            self._leaving.add(sequence_id)
        for sequence in [item for item in self._waiting if item.id == sequence_id]:
            sequence.phase = Phase.ENDED
            self._waiting.remove(sequence)

    def plan(self) -> Plan:
        exhausted = {item.id for item in self._running.values() if item.exhausted}
        stepping = len(self._running) - len(exhausted)
        return Plan(
            leave=frozenset(self._leaving | exhausted),
            decode=stepping > 0,
            prefill=tuple(self._prefill_chunks(free_rows=self._max_rows - stepping)),
        )

    def _prefill_chunks(self, *, free_rows: int) -> list[PrefillChunk]:
        """Up to one chunk's worth of prompt tokens, so that a running row waits at most that long."""
        chunks: list[PrefillChunk] = []
        budget = self._chunk_tokens
        for sequence in self._waiting:
            if free_rows <= 0 or budget <= 0:
                break
            wanted = sequence.prefill_tokens - sequence.prefilled
            length = wanted if sequence.whole else min(wanted, budget)
            joins = length == wanted
            chunks.append(PrefillChunk(sequence.id, sequence.prefilled, sequence.prefilled + length, joins))
            budget -= max(length, 1)
            free_rows -= 1
            if not joins:
                break
        return chunks

    def apply(self, plan: Plan) -> None:
        """Book what the device did. Rows that left stay known to no one."""
        for sequence_id in plan.leave:
            self._leaving.discard(sequence_id)
            self._running.pop(sequence_id, None)
        if plan.decode:
            for sequence in self._running.values():
                sequence.issued += 1
        for chunk in plan.prefill:
            sequence = self._waiting[0]
            assert sequence.id == chunk.id, "prefill is in order of arrival"
            sequence.prefilled, sequence.phase = chunk.stop, Phase.PREFILLING
            if chunk.joins:
                self._waiting.popleft()
                sequence.phase = Phase.RUNNING
                self._running[sequence.id] = sequence

    def check(self) -> None:
        """Raise if bookkeeping is inconsistent. Called when idle, and in tests after every step."""
        running, waiting = set(self._running), {item.id for item in self._waiting}
        if running & waiting or running & self._leaving or len(running) > self._max_rows:
            raise RuntimeError(f"scheduler: running {running}, waiting {waiting}, leaving {self._leaving}")
