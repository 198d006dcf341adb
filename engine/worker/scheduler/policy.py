"""Who runs next: a pure decision per tick. Knows no MLX, no text; what time it is, it is told.

tick:  scheduler.begin(now)             who gives way, who has waited too long
       plan = scheduler.plan()          what to do, as a value
       result = runner.execute(plan)    the device does it
       scheduler.apply(plan)            states follow
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from engine.worker.scheduler.order import first, gives_way, overdue
from engine.worker.scheduler.pace import BATCH_STALL_SECONDS, Pace
from engine.worker.scheduler.sequence import Phase, Priority, Sequence

BATCH_CHUNK: Final = 128
"""Prompt tokens of the batch that run at once while nothing else does, whatever they take."""
_BEGUN: Final = (Phase.PREFILLING, Phase.RUNNING)
ROWS_WITH_RESERVE: Final = 4
"""From so many rows on, one is kept from batch work: whoever waits for an answer begins at once."""


@dataclass(frozen=True)
class PrefillChunk:
    """Run prompt tokens start..stop of one sequence; `joins` when that completes its prefill, and `draws` when its first token is
    to be drawn at once, without the rows that run."""

    id: str
    start: int
    stop: int
    joins: bool
    draws: bool = False


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
    """Sequences of one worker, with prefill cut into chunks between decode steps.

    `kv_tokens` bounds the tokens whose KV running and prefilling sequences may hold together; None is no bound. While `held`,
    batch work waits (interactive work runs in another worker). Owned by the worker's loop.
    Invariant: `running` are exactly the rows of the device's batch after `apply`.
    """

    def __init__(self, *, max_rows: int, chunk_tokens: int, kv_tokens: int | None = None) -> None:
        self._max_rows, self._chunk_tokens = max_rows, chunk_tokens
        self.kv_tokens = kv_tokens
        self.held = False
        self.pace = Pace()
        self._waiting: dict[str, Sequence] = {}
        self._running: dict[str, Sequence] = {}
        self._leaving: set[str] = set()
        self._preempting: set[str] = set()
        self._arrivals = 0
        self._aged_first = self._began = self._drew = False
        self.preemptions = 0

    @property
    def idle(self) -> bool:
        """Nothing to do now. Sequences that are being fetched wait for a message, held ones for theirs."""
        working = any(not self._is_held(one) for one in self._running.values())
        return not (working or self._leaving or any(True for _ in self._ready()))

    @property
    def waiting(self) -> int:
        """Sequences that have no row yet."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        self._arrivals += 1
        sequence.number = self._arrivals
        self._waiting[sequence.id] = sequence

    def fetched(self, sequence_id: str) -> None:
        """What was known of its prompt is here: it may begin. Unknown ids are ended already."""
        sequence = self._waiting.get(sequence_id)
        if sequence is not None and sequence.phase is Phase.FETCHING:
            sequence.phase = Phase.WAITING

    def waits_with_images(self, priority: Priority) -> bool:
        """Whether a sequence with images, of this priority or a better one, has not begun."""
        return any(
            not one.preemptible and one.priority <= priority and one.phase not in _BEGUN
            for one in self._waiting.values()
        )

    def begin(self, now: float) -> None:
        """Choose who gives way to whom in the next plan."""
        if not self._waiting and self.kv_tokens is None:
            return
        if self._began:  # turns are beginnings: by ticks, who needs a row could find it taken in every one of his
            self._aged_first, self._began = not self._aged_first, False
        if not any(one.aged for one in [*self._running.values(), *self._waiting.values()]):
            aged = overdue(self._ready(), now)
            if aged is not None:
                aged.aged = True
        if self.kv_tokens is not None and len(self._staying) > 1 and self.held_tokens() > self.kv_tokens:
            self._give_way()
            return
        wanted = first(self._ready(), self._rows_of(), aged_first=self._aged_first)
        if wanted is not None and (self._rows_for(wanted) <= 0 or not self._fits(wanted)):
            given = self._give_way(to=wanted)
            begun = [one for one in [*self._staying, *self._waiting.values()] if one.phase in _BEGUN]
            if not given and any(self._is_held(one) for one in begun):
                self.held = False  # this tick: what is in the way of somebody who waits has to go on

    def _give_way(self, *, to: Sequence | None = None) -> bool:
        """Have a row leave, if one can."""
        victim = gives_way(self._staying, to=to)
        return victim is not None and self.preempt(victim.id)

    def starting(self) -> Iterator[Sequence]:
        """Sequences whose prefill begins with the next plan, in order, unless they are set to be fetched first. What is set on
        one counts for those after it."""
        while True:  # anew after each: in the place of one that is fetched another begins
            sequence = next((one for one, _ in self._candidates() if one.phase is Phase.WAITING), None)
            if sequence is None:
                return
            yield sequence
            if sequence.phase is Phase.WAITING:
                sequence.phase, self._began = Phase.PREFILLING, True

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
        """Finished, failed or cancelled, in whatever phase. Unknown ids are ended already. Whether it leaves by the next plan."""
        self._preempting.discard(sequence_id)
        if sequence := self._running.pop(sequence_id, None):
            sequence.phase = Phase.ENDED
            self._leaving.add(sequence_id)
        if sequence := self._waiting.pop(sequence_id, None):
            sequence.phase = Phase.ENDED
        return sequence_id in self._leaving

    def plan(self) -> Plan:
        prefill = self._prefill_chunks()
        return Plan(
            leave=frozenset(self._leave),
            decode=bool(self._staying) and not self._pauses(prefill),
            prefill=tuple(prefill),
            preempted=frozenset(self._preempting),
        )

    def apply(self, plan: Plan) -> None:
        """Book what the device did. Rows that left stay known to no one, but preempted ones wait again."""
        for sequence_id in plan.leave:
            self._leaving.discard(sequence_id)
            sequence = self._running.pop(sequence_id, None)
            if sequence_id in self._preempting:
                self._preempting.discard(sequence_id)
                assert sequence is not None
                self._wait_again(sequence)
            elif sequence is not None:
                sequence.phase = Phase.ENDED
        if plan.decode:
            for sequence in self._running.values():
                sequence.issued += 1
        self._drew = not plan.decode and any(chunk.draws for chunk in plan.prefill)
        for chunk in plan.prefill:
            sequence = self._waiting[chunk.id]
            sequence.prefilled, sequence.phase = chunk.stop, Phase.PREFILLING
            if chunk.joins:
                del self._waiting[chunk.id]
                sequence.phase = Phase.RUNNING
                sequence.issued += chunk.draws
                self._running[sequence.id] = sequence

    def check(self) -> None:
        """Raise if bookkeeping is inconsistent. Called when idle, and in tests after every step."""
        running, waiting = set(self._running), set(self._waiting)
        if running & waiting or running & self._leaving or len(running) > self._max_rows:
            raise RuntimeError(f"scheduler: running {running}, waiting {waiting}, leaving {self._leaving}")

    # What there is room for -------------------------------------------------------------------------------------------

    def _ready(self) -> Iterator[Sequence]:
        return (one for one in self._waiting.values() if one.phase is not Phase.FETCHING and not self._is_held(one))

    def _is_held(self, sequence: Sequence) -> bool:
        return self.held and sequence.priority is Priority.BATCH

    @property
    def _staying(self) -> list[Sequence]:
        """Rows that take part in the next step."""
        return [one for one in self._running.values() if not one.exhausted and one.id not in self._leaving]

    def _rows_of(self) -> Counter[str]:
        return Counter(one.tenant for one in self._staying)

    def _rows_for(self, sequence: Sequence) -> int:
        """Free rows that this sequence may take."""
        reserve = 1 if self._max_rows >= ROWS_WITH_RESERVE and sequence.priority is Priority.BATCH else 0
        return self._max_rows - len(self._staying) - reserve

    def held_tokens(self) -> int:
        """Of running rows and of prompts that are read, whose memory is reserved."""
        return sum(one.held_tokens for one in [*self._staying, *self._waiting.values()])

    def _candidates(self) -> Iterator[tuple[Sequence, int]]:
        """Sequences for this tick's prefill with what is left of its tokens for each, in order, until rows, tokens or memory
        are used up. Batch prompts do not fill up the tick of another: its first token would wait for them. Nor that in which
        rows leave, whose KV is kept then, unless they are aged: whoever comes meanwhile finds one thing under way instead of
        two."""
        left = {one.id: one for one in self._ready()}
        rows_of, taken, urgent, leaves = self._rows_of(), 0, False, bool(self._leave)
        budget, batch_budget = self._budget(), self._batch_budget()
        while budget > 0 and left:
            chosen = first(left.values(), rows_of, aged_first=self._aged_first)
            assert chosen is not None
            is_batch = chosen.priority is Priority.BATCH
            if self._rows_for(chosen) - taken <= 0:
                return
            if is_batch and (urgent or (leaves and not chosen.aged) or batch_budget <= 0):
                return
            if not self._fits(chosen):
                # Nobody overtakes: the next smaller one would, for ever. But whose prompt is begun has its memory, and
                # gives it back only by going on.
                left = {name: one for name, one in left.items() if one.phase is Phase.PREFILLING}
                continue
            room = min(budget, batch_budget) if is_batch else budget
            yield chosen, room
            urgent = urgent or not is_batch
            del left[chosen.id]
            taken += 1
            rows_of[chosen.tenant] += 1
            used = max(min(chosen.prefill_tokens - chosen.prefilled, room), 1)
            budget -= used
            batch_budget -= used

    def _fits(self, sequence: Sequence) -> bool:
        """Whether its prompt's KV has room beside that of the others. Alone, everything has. What had to give way comes back
        only where it can stay for a while."""
        if self.kv_tokens is None or sequence.phase is Phase.PREFILLING:
            return True
        held, room = self.held_tokens(), self.kv_tokens - (self.kv_tokens // 8 if sequence.prompt_growth else 0)
        return held == 0 or held + sequence.prompt_tokens <= room

    def _budget(self) -> int:
        """Prompt tokens of one tick: as many as running streams can wait for. Batch rows could wait longer, but not whoever
        comes in the middle of it."""
        return self.pace.chunk(self._chunk_tokens) if self._staying else self._chunk_tokens

    def _batch_budget(self) -> int:
        """Prompt tokens of the batch in one tick, also while nothing runs: somebody may come in the middle of it. But then not so
        few that little is done for reading all weights."""
        chunk = self.pace.chunk(self._chunk_tokens, stall_seconds=BATCH_STALL_SECONDS)
        return chunk if self._staying else max(chunk, min(BATCH_CHUNK, self._chunk_tokens))

    @property
    def _leave(self) -> set[str]:
        """Rows that leave with the next plan."""
        return self._leaving | {one.id for one in self._running.values() if one.exhausted}

    def _prefill_chunks(self) -> list[PrefillChunk]:
        chunks: list[PrefillChunk] = []
        for sequence, budget in self._candidates():
            start, joins = sequence.prefilled, False
            while budget > 0 and not joins:
                stop = start + sequence.next_chunk(start, budget)
                joins = stop == sequence.prefill_tokens
                draws = (
                    joins and not sequence.whole and sequence.priority is not Priority.BATCH and self._only_batch_runs
                )
                chunks.append(PrefillChunk(sequence.id, start, stop, joins, draws))
                budget -= max(stop - start, 1)
                start = stop
        return chunks

    @property
    def _only_batch_runs(self) -> bool:
        rows = self._staying
        return bool(rows) and all(one.priority is Priority.BATCH for one in rows)

    def _pauses(self, prefill: list[PrefillChunk]) -> bool:
        """Batch rows among themselves wait while held, and for any prompt: it may be that of somebody who waits; and for another
        of the batch, more rows then share every step, and whoever comes meanwhile finds one thing under way instead of two. But
        not twice in a row for answers that are complete with their first token: there is no end to those."""
        return self._only_batch_runs and (self.held or (bool(prefill) and not self._drew))

    def _wait_again(self, sequence: Sequence) -> None:
        """Its prompt is now all that it has read and said."""
        sequence.prompt_tokens += sequence.issued - sequence.prompt_growth
        sequence.prompt_growth = sequence.issued
        sequence.prefilled, sequence.checkpoints_at, sequence.phase = 0, (), Phase.FETCHING
        self._waiting[sequence.id] = sequence
