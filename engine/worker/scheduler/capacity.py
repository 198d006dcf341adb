"""What a tick has room for: rows, KV and prompt tokens. Pure decisions about a moment that is handed in as a value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from engine.worker.scheduler.order import first
from engine.worker.scheduler.pace import BATCH_STALL_SECONDS, Pace
from engine.worker.scheduler.plan import PrefillChunk
from engine.worker.scheduler.sequence import Phase, Sequence

BATCH_CHUNK: Final = 128
"""Prompt tokens of batch work that run at once while nothing else does, however long they take: fewer would read all weights
for little work."""
ROWS_WITH_RESERVE: Final = 4
"""With this many rows or more, one is kept free of batch work: a request that somebody waits for begins at once."""
RETURN_SHARE: Final = 8
"""A preempted sequence comes back only when it leaves one part in eight of the KV bound free: it should stay for a while."""


@dataclass(frozen=True)
class Capacity:
    """One moment. `rows` take part in the next step. `kv_tokens` is the KV in use, or reserved for prompts that are being
    prefilled, and `kv_tokens_bound` its bound (None: no bound)."""

    max_rows: int
    chunk_tokens: int
    rows: list[Sequence]
    kv_tokens: int
    kv_tokens_bound: int | None

    @property
    def only_batch_runs(self) -> bool:
        return bool(self.rows) and all(one.priority == "batch" for one in self.rows)

    @property
    def is_over(self) -> bool:
        """The rows have outgrown the KV bound. One row alone may."""
        return self.kv_tokens_bound is not None and len(self.rows) > 1 and self.kv_tokens > self.kv_tokens_bound

    def rows_of_tenants(self) -> Counter[str]:
        return Counter(one.tenant for one in self.rows)

    def free_rows(self, sequence: Sequence) -> int:
        """Rows that this sequence may take."""
        reserve = 1 if self.max_rows >= ROWS_WITH_RESERVE and sequence.priority == "batch" else 0
        return self.max_rows - len(self.rows) - reserve

    def fits(self, sequence: Sequence) -> bool:
        """Whether the KV of its prompt fits beside that of the others. A sequence that is alone always fits."""
        bound = self.kv_tokens_bound
        if bound is None or sequence.phase is Phase.PREFILLING:
            return True
        if sequence.prompt_growth:
            bound -= bound // RETURN_SHARE
        return self.kv_tokens == 0 or self.kv_tokens + sequence.input_tokens <= bound

    def prompt_tokens(self, pace: Pace) -> tuple[int, int]:
        """Prompt tokens of one tick: of all work, and of batch work.

        Running streams can wait for the first. The second is smaller, also while nothing runs: a request may arrive in the middle
        of the chunk, and waits for the rest of it.
        """
        batch = pace.chunk(self.chunk_tokens, stall_seconds=BATCH_STALL_SECONDS)
        if self.rows:
            return pace.chunk(self.chunk_tokens), batch
        return self.chunk_tokens, max(batch, min(BATCH_CHUNK, self.chunk_tokens))


def admissions(
    capacity: Capacity, ready: Iterable[Sequence], pace: Pace, *, aged_first: bool, rows_leave: bool
) -> Iterator[tuple[Sequence, int]]:
    """Sequences for this tick's prefill with the prompt tokens that are left for each, in order, until rows, prompt tokens or KV
    are used up.

    Batch prompts do not fill up a tick that another prompt has begun: its first token would wait for them. Unless they are aged,
    they do not run either in a tick in which rows leave, whose KV is stored then: a request that arrives meanwhile waits for one
    thing instead of two.
    """
    left = {one.id: one for one in ready}
    if not left:
        return
    tenants, taken, urgent = capacity.rows_of_tenants(), 0, False
    budget, batch_budget = capacity.prompt_tokens(pace)
    while budget > 0 and left:
        chosen = first(left.values(), tenants, aged_first=aged_first)
        assert chosen is not None
        is_batch = chosen.priority == "batch"
        if capacity.free_rows(chosen) - taken <= 0:
            return
        if is_batch and (urgent or (rows_leave and not chosen.aged) or batch_budget <= 0):
            return
        if not capacity.fits(chosen):
            # Nobody overtakes it, or smaller ones would for ever. But a prompt that has begun has its memory, and gives it back
            # only by going on.
            left = {name: one for name, one in left.items() if one.phase is Phase.PREFILLING}
            continue
        tokens = min(budget, batch_budget) if is_batch else budget
        yield chosen, tokens
        urgent = urgent or not is_batch
        del left[chosen.id]
        taken += 1
        tenants[chosen.tenant] += 1
        used = max(min(chosen.prefill_tokens - chosen.prefilled, tokens), 1)
        budget -= used
        batch_budget -= used


def chunks(capacity: Capacity, sequence: Sequence, budget: int) -> Iterator[PrefillChunk]:
    """The sequence's chunks of one tick. It goes on after a checkpoint while tokens of the `budget` are left."""
    start, joins = sequence.prefilled, False
    may_draw = not sequence.whole and sequence.priority != "batch" and capacity.only_batch_runs
    while budget > 0 and not joins:
        end = start + sequence.next_chunk(start, budget)
        joins = end == sequence.prefill_tokens
        yield PrefillChunk(sequence.id, start, end, joins, draws=joins and may_draw)
        budget -= max(end - start, 1)
        start = end
