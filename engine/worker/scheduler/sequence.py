"""The state of one sequence, as the scheduler sees it: counts, no tokens and no arrays."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum


class Phase(Enum):
    """(fetching →) waiting → prefilling → running → ended. A sequence can end from anywhere; a running one can be preempted,
    and then waits again."""

    FETCHING = "fetching"
    WAITING = "waiting"
    PREFILLING = "prefilling"
    RUNNING = "running"
    ENDED = "ended"


class Priority(IntEnum):
    """The smaller goes first."""

    INTERACTIVE = 0
    NORMAL = 1
    BATCH = 2


@dataclass
class Sequence:
    """`prompt_tokens` ≥ 1; all but the last are prefilled, the last is the first decode input.

    `whole` sequences are prefilled in one piece; others pause at each of `checkpoints_at`. `issued` counts tokens drawn, read or
    not; `prompt_growth` those of them that are part of the prompt since it was preempted. Sequences with images are not
    `preemptible`.
    While `FETCHING`, what is known of the prompt is on its way from the SSD.
    `arrived` is in seconds of the loop's clock, and `number` counts who came in. An `aged` sequence has waited so long
    that it has every second turn, and no one takes its place.
    """

    id: str
    prompt_tokens: int
    max_tokens: int
    whole: bool = False
    preemptible: bool = True
    priority: Priority = Priority.NORMAL
    tenant: str = ""
    arrived: float = 0.0
    checkpoints_at: tuple[int, ...] = ()
    prefilled: int = 0
    issued: int = 0
    prompt_growth: int = 0
    phase: Phase = Phase.WAITING
    number: int = 0
    aged: bool = False

    @property
    def prefill_tokens(self) -> int:
        return self.prompt_tokens - 1

    @property
    def held_tokens(self) -> int:
        """Tokens whose KV is in memory, or will be when its prefill is complete."""
        if self.phase is Phase.RUNNING:
            return self.prompt_tokens + self.issued - self.prompt_growth
        return self.prompt_tokens if self.phase is Phase.PREFILLING else 0

    def next_chunk(self, start: int, budget: int) -> int:
        """Prompt tokens to run from `start`, at most `budget` unless the sequence cannot be cut."""
        rest = self.prefill_tokens - start
        if self.whole:
            return rest
        return min([rest, budget, *(place - start for place in self.checkpoints_at if place > start)])

    @property
    def exhausted(self) -> bool:
        """Every token it may have is drawn: it must not take part in another step."""
        return self.issued >= self.max_tokens
