"""Who runs next: a pure decision per tick. Knows no MLX and no text, and is told what time it is.

tick:  scheduler.begin(now)             who gives way, who has waited too long
       plan = scheduler.plan()          what to do, as a value
       result = runner.execute(plan)    the device does it
       scheduler.apply(plan, result)    states follow

A sequence's phases:

    add ──> FETCHING ──fetched──> WAITING ──its turn──> PREFILLING ──its last chunk joins──> RUNNING ──> ENDED
       └───────────────────────────^                                                           │
                 ^                                                                             │
                 └──────────────────────── preempted: it keeps its arrival ────────────────────┘

`end` leads to ENDED from every phase. A turn is one admission, not one tick: counted by ticks, a request that needs a free row
could find none in each of its turns. Turns alternate: one goes by priority, the next to the aged sequence if there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from engine.types import Priority
from engine.worker.scheduler.capacity import Capacity, admissions, chunks
from engine.worker.scheduler.order import first, gives_way, overdue, rank
from engine.worker.scheduler.pace import Pace
from engine.worker.scheduler.plan import Plan, PrefillChunk, StepResult
from engine.worker.scheduler.sequence import Phase, Sequence

_BEGUN: Final = (Phase.PREFILLING, Phase.RUNNING)


class Scheduler:
    """Sequences of one worker, with prefill cut into chunks between decode steps.

    `kv_tokens_bound` bounds the tokens whose KV running and prefilling sequences may hold together; None is no bound. While
    `paused`, batch work waits because interactive work runs in another worker. Owned by the worker's loop.
    Invariant: `running` are exactly the rows of the device's batch after `apply`.
    """

    def __init__(self, *, max_rows: int, chunk_tokens: int, kv_tokens_bound: int | None = None) -> None:
        self._max_rows, self._chunk_tokens = max_rows, chunk_tokens
        self.kv_tokens_bound = kv_tokens_bound
        self.paused = False
        self.pace = Pace()
        self._waiting: dict[str, Sequence] = {}
        self._running: dict[str, Sequence] = {}
        self._leaving: set[str] = set()
        self._preempting: set[str] = set()
        self._arrivals = 0
        self._aged_first = self._admitted = self._drew = False
        self.preemptions = 0

    @property
    def idle(self) -> bool:
        """Nothing to do now. Sequences that are being fetched, and paused ones, wait for a message."""
        working = any(not self._is_paused(one) for one in self._running.values())
        return not (working or self._leaving or any(True for _ in self._ready()))

    @property
    def waiting(self) -> int:
        """Sequences that have no row yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def kv_tokens(self) -> int:
        """Tokens whose KV running rows hold, or that is reserved for prompts that are being prefilled."""
        return sum(one.kv_tokens for one in [*self._staying, *self._waiting.values()])

    def add(self, sequence: Sequence) -> None:
        self._arrivals += 1
        sequence.number = self._arrivals
        self._waiting[sequence.id] = sequence

    def fetched(self, sequence_id: str) -> None:
        """What the KV cache has of its prompt is in memory: it may begin. An unknown id has ended already."""
        sequence = self._waiting.get(sequence_id)
        if sequence is not None and sequence.phase is Phase.FETCHING:
            sequence.phase = Phase.WAITING

    def waits_with_images(self, priority: Priority) -> bool:
        """Whether a sequence with images, of this priority or a better one, has not begun."""
        return any(
            not one.preemptible and rank(one.priority) <= rank(priority) and one.phase not in _BEGUN
            for one in self._waiting.values()
        )

    def begin(self, now: float) -> None:
        """Choose who gives way to whom in the next plan."""
        if not self._waiting and self.kv_tokens_bound is None:
            return
        if self._admitted:
            self._aged_first, self._admitted = not self._aged_first, False
        if not any(one.aged for one in [*self._running.values(), *self._waiting.values()]):
            aged = overdue(self._ready(), now)
            if aged is not None:
                aged.aged = True
        capacity = self._capacity()
        if capacity.is_over:
            self._give_way(capacity)
            return
        wanted = first(self._ready(), capacity.rows_of_tenants(), aged_first=self._aged_first)
        if wanted is not None and (capacity.free_rows(wanted) <= 0 or not capacity.fits(wanted)):
            given = self._give_way(capacity, to=wanted)
            begun = [one for one in [*self._staying, *self._waiting.values()] if one.phase in _BEGUN]
            if not given and any(self._is_paused(one) for one in begun):
                self.paused = False  # in this tick: paused work that is in the way of a waiting sequence has to go on

    def _give_way(self, capacity: Capacity, *, to: Sequence | None = None) -> bool:
        """Have a row leave, if one can."""
        victim = gives_way(capacity.rows, to=to)
        return victim is not None and self.preempt(victim.id)

    def starting(self) -> Iterator[Sequence]:
        """Sequences whose prefill begins with the next plan, in order.

        The caller sets `prefilled` and `checkpoints_at`, or `phase` to FETCHING for one whose KV has to be read first. What it
        sets on one counts for those after it.
        """
        while True:  # decided anew each time: if one has to be fetched, another begins in its place
            sequence = next((one for one, _ in self._admissions(self._capacity()) if one.phase is Phase.WAITING), None)
            if sequence is None:
                return
            yield sequence
            if sequence.phase is Phase.WAITING:
                sequence.phase, self._admitted = Phase.PREFILLING, True

    def preempt(self, sequence_id: str) -> bool:
        """Take a running sequence out of the batch; it waits to go on. False if it cannot."""
        sequence = self._running.get(sequence_id)
        if sequence is None or sequence.exhausted or not sequence.preemptible or sequence_id in self._leaving:
            return False
        self._leaving.add(sequence_id)
        self._preempting.add(sequence_id)
        self.preemptions += 1
        return True

    def end(self, sequence_id: str) -> bool:
        """Finished, failed or cancelled, in any phase. True if it leaves the batch with the next plan. An unknown id has ended
        already."""
        self._preempting.discard(sequence_id)
        if sequence := self._running.pop(sequence_id, None):
            sequence.phase = Phase.ENDED
            self._leaving.add(sequence_id)
        if sequence := self._waiting.pop(sequence_id, None):
            sequence.phase = Phase.ENDED
        return sequence_id in self._leaving

    def plan(self) -> Plan:
        capacity = self._capacity()
        prefill = tuple(chunk for one, budget in self._admissions(capacity) for chunk in chunks(capacity, one, budget))
        return Plan(
            leave=frozenset(self._leave),
            decode=bool(capacity.rows) and not self._pauses(capacity, prefill),
            prefill=prefill,
            preempted=frozenset(self._preempting),
        )

    def apply(self, plan: Plan, result: StepResult) -> None:
        """Follow what the device did.

        Counts come from the `result` alone: `drawn` grows by the tokens that were read, however many a row had, and a row is
        `in_flight` while a step of it is not read. So a row whose last token is being computed is known to be exhausted before
        that token is read, and leaves without another step. Rows that left are forgotten; preempted ones wait again.
        """
        for chunk in plan.prefill:
            sequence = self._waiting[chunk.id]
            sequence.prefilled, sequence.phase = chunk.end, Phase.PREFILLING
            if chunk.joins:
                del self._waiting[chunk.id]
                sequence.phase = Phase.RUNNING
                self._running[sequence.id] = sequence
        for drawn in result.drawn:
            if (row := self._running.get(drawn.id)) is not None:  # else it was ended by a token before this one
                row.drawn += 1
        for row in self._running.values():
            row.in_flight = row.id in result.in_flight
        for sequence_id in plan.leave:
            self._leave_batch(sequence_id)
        self._drew = not plan.decode and any(chunk.draws for chunk in plan.prefill)

    def _leave_batch(self, sequence_id: str) -> None:
        self._leaving.discard(sequence_id)
        sequence = self._running.pop(sequence_id, None)
        if sequence_id in self._preempting:
            self._preempting.discard(sequence_id)
            assert sequence is not None
            sequence.wait_again()
            self._waiting[sequence_id] = sequence
        elif sequence is not None:
            sequence.phase = Phase.ENDED

    def check(self) -> None:
        """Raise if bookkeeping is inconsistent. Called when idle, and in tests after every step."""
        running, waiting = set(self._running), set(self._waiting)
        if running & waiting or running & self._leaving != self._preempting or len(running) > self._max_rows:
            raise RuntimeError(f"scheduler: running {running}, waiting {waiting}, leaving {self._leaving}")
        if late := [one.id for one in self._running.values() if one.drawn + one.in_flight > one.max_tokens]:
            raise RuntimeError(f"scheduler: {late} drew more tokens than they may have")

    # What there is room for -------------------------------------------------------------------------------------------

    def _capacity(self) -> Capacity:
        """This moment, for pure decisions."""
        bound = self.kv_tokens_bound
        return Capacity(
            self._max_rows, self._chunk_tokens, self._staying, 0 if bound is None else self.kv_tokens, bound
        )

    def _admissions(self, capacity: Capacity) -> Iterator[tuple[Sequence, int]]:
        if not self._waiting:
            return iter(())
        return admissions(capacity, self._ready(), self.pace, aged_first=self._aged_first, rows_leave=bool(self._leave))

    def _ready(self) -> Iterator[Sequence]:
        return (one for one in self._waiting.values() if one.phase is not Phase.FETCHING and not self._is_paused(one))

    def _is_paused(self, sequence: Sequence) -> bool:
        return self.paused and sequence.priority == "batch"

    @property
    def _staying(self) -> list[Sequence]:
        """Rows that take part in the next step."""
        return [one for one in self._running.values() if not one.exhausted and one.id not in self._leaving]

    @property
    def _leave(self) -> set[str]:
        """Rows that leave with the next plan."""
        return self._leaving | {one.id for one in self._running.values() if one.exhausted}

    def _pauses(self, capacity: Capacity, prefill: tuple[PrefillChunk, ...]) -> bool:
        """Whether batch rows skip this step. They do so only among themselves.

        They wait while batch work is paused, and for any prompt: somebody may wait for its answer. Even a batch prompt goes
        first, because more rows then share every step, and because a request that arrives meanwhile waits for one thing instead
        of two. But they do not wait twice in a row for answers that are complete with their first token: those might never end.
        """
        return capacity.only_batch_runs and (self.paused or (bool(prefill) and not self._drew))
