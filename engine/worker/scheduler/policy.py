"""Who runs next: a pure decision per tick. Knows no MLX, no text, no clock.

tick:  plan = scheduler.plan()          what to do, as a value
       result = runner.execute(plan)    the device does it
       scheduler.apply(plan)            states follow
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
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
    """One tick: rows leave, the others decode one token, then prompt chunks run and complete rows join. `preempted` rows are
    among those that leave, and come back."""

    leave: frozenset[str]
    decode: bool
    prefill: tuple[PrefillChunk, ...]
    preempted: frozenset[str] = frozenset()

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
        self._preempting: set[str] = set()

    @property
    def idle(self) -> bool:
        """Nothing to do now. Sequences that are being fetched wait for a message."""
        return not (self._running or self._leaving or any(True for _ in self._ready))

    @property
    def _ready(self) -> Iterator[Sequence]:
        return (sequence for sequence in self._waiting if sequence.phase is not Phase.FETCHING)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def fetched(self, sequence_id: str) -> None:
        """What was known of its prompt is here: it may begin. Unknown ids are ended already."""
        for sequence in self._waiting:
            if sequence.id == sequence_id and sequence.phase is Phase.FETCHING:
                sequence.phase = Phase.WAITING

    def starting(self) -> Iterator[Sequence]:
        """Sequences whose prefill begins with the next plan, in order. What is set on one counts for those after it."""
        budget, rows = self._chunk_tokens, self._free_rows
        for sequence in [*self._ready]:
            if budget <= 0 or rows <= 0:
                return
            if sequence.phase is Phase.WAITING:
                yield sequence
                sequence.phase = Phase.PREFILLING
            budget -= max(sequence.prefill_tokens - sequence.prefilled, 1)
            rows -= 1

    def preempt(self, sequence_id: str) -> bool:
        """Take a running sequence out of the batch; it waits, before all others, to go on. False if it cannot."""
        sequence = self._running.get(sequence_id)
        if sequence is None or sequence.exhausted or not sequence.preemptible or sequence_id in self._leaving:
            return False
        self._leaving.add(sequence_id)
        self._preempting.add(sequence_id)
        return True

    def end(self, sequence_id: str) -> bool:
        """Finished, failed or cancelled, in whatever phase. Unknown ids are ended already. Whether it leaves by the next plan."""
        self._preempting.discard(sequence_id)
        if sequence := self._running.pop(sequence_id, None):
            sequence.phase = Phase.ENDED
            self._leaving.add(sequence_id)
        for sequence in [item for item in self._waiting if item.id == sequence_id]:
            sequence.phase = Phase.ENDED
            self._waiting.remove(sequence)
        return sequence_id in self._leaving

    @property
    def _free_rows(self) -> int:
        return self._max_rows - sum(
            not sequence.exhausted and sequence.id not in self._leaving for sequence in self._running.values()
        )

    def plan(self) -> Plan:
        leave = self._leaving | {item.id for item in self._running.values() if item.exhausted}
        return Plan(
            leave=frozenset(leave),
            decode=any(sequence_id not in leave for sequence_id in self._running),
            prefill=tuple(self._prefill_chunks(free_rows=self._free_rows)),
            preempted=frozenset(self._preempting),
        )

    def _prefill_chunks(self, *, free_rows: int) -> list[PrefillChunk]:
        """Up to one chunk's worth of prompt tokens, so that a running row waits at most that long."""
        chunks: list[PrefillChunk] = []
        budget = self._chunk_tokens
        for sequence in self._ready:
            if free_rows <= 0:
                break
            free_rows -= 1
            start, joins = sequence.prefilled, False
            while budget > 0 and not joins:
                stop = start + sequence.next_chunk(start, budget)
                joins = stop == sequence.prefill_tokens
                chunks.append(PrefillChunk(sequence.id, start, stop, joins))
                budget -= max(stop - start, 1)
                start = stop
            if not joins:
                break
        return chunks

    def apply(self, plan: Plan) -> None:
        """Book what the device did. Rows that left stay known to no one, but preempted ones wait again."""
        for sequence_id in plan.leave:
            self._leaving.discard(sequence_id)
            sequence = self._running.pop(sequence_id, None)
            if sequence_id in self._preempting:
                self._preempting.discard(sequence_id)
                assert sequence is not None
                self._wait_again(sequence)
        if plan.decode:
            for sequence in self._running.values():
                sequence.issued += 1
        for chunk in plan.prefill:
            sequence = next(item for item in self._waiting if item.id == chunk.id)
            sequence.prefilled, sequence.phase = chunk.stop, Phase.PREFILLING
            if chunk.joins:
                self._waiting.remove(sequence)
                sequence.phase = Phase.RUNNING
                self._running[sequence.id] = sequence

    def _wait_again(self, sequence: Sequence) -> None:
        """Its prompt is now all that it has read and said."""
        sequence.prompt_tokens += sequence.issued - sequence.said
        sequence.said = sequence.issued
        sequence.prefilled, sequence.stops, sequence.phase = 0, (), Phase.FETCHING
        self._waiting.appendleft(sequence)

    def check(self) -> None:
        """Raise if bookkeeping is inconsistent. Called when idle, and in tests after every step."""
        running, waiting = set(self._running), {item.id for item in self._waiting}
        if running & waiting or running & self._leaving or len(running) > self._max_rows:
            raise RuntimeError(f"scheduler: running {running}, waiting {waiting}, leaving {self._leaving}")
