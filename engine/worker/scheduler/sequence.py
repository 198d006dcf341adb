"""The state of one sequence, as the scheduler sees it: counts, no tokens and no arrays."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from engine.types import Priority


class Phase(Enum):
    """Where a sequence stands. See the drawing in `engine.worker.scheduler.policy`."""

    FETCHING = "fetching"
    WAITING = "waiting"
    PREFILLING = "prefilling"
    RUNNING = "running"
    ENDED = "ended"


@dataclass
class Sequence:
    """One answer to one prompt. Counts are tokens; `prompt_tokens` and `max_tokens` are at least 1.

    `drawn` tokens of the answer are known. With a step `in_flight`, at least one more is being computed. `prompt_growth` of the
    drawn ones are prefilled with the prompt, because the sequence was preempted after them. `prefilled` tokens are computed;
    prefill pauses at each position of `checkpoints_at`.

    A `whole` sequence is prefilled in one piece. Sequences with images are not `preemptible`. `arrived` is in seconds of the
    loop's clock, and `number` counts arrivals. An `aged` sequence has waited too long: it has every second turn, and no other
    sequence takes its row.
    """

    id: str
    prompt_tokens: int
    max_tokens: int
    whole: bool = False
    preemptible: bool = True
    priority: Priority = "normal"
    tenant: str = ""
    arrived: float = 0.0
    checkpoints_at: tuple[int, ...] = ()
    prefilled: int = 0
    drawn: int = 0
    in_flight: bool = False
    prompt_growth: int = 0
    phase: Phase = Phase.WAITING
    number: int = 0
    aged: bool = False

    @property
    def input_tokens(self) -> int:
        """Tokens that are known before it joins the batch. All but the last are prefilled; the last is the first decode input."""
        return self.prompt_tokens + self.prompt_growth

    @property
    def prefill_tokens(self) -> int:
        return self.input_tokens - 1

    @property
    def kv_tokens(self) -> int:
        """Tokens whose KV is in memory, or will be when its prefill is complete."""
        if self.phase is Phase.RUNNING:
            return self.prompt_tokens + self.drawn + self.in_flight
        return self.input_tokens if self.phase is Phase.PREFILLING else 0

    @property
    def exhausted(self) -> bool:
        """Every token it may have is drawn or in flight: it must not take part in another step."""
        return self.drawn + self.in_flight >= self.max_tokens

    def next_chunk(self, start: int, budget: int) -> int:
        """Prompt tokens to run from `start`: at most `budget`, unless the sequence cannot be cut."""
        rest = self.prefill_tokens - start
        if self.whole:
            return rest
        return min([rest, budget, *(place - start for place in self.checkpoints_at if place > start)])

    def wait_again(self) -> None:
        """It was preempted. What it has drawn is prefilled with its prompt, or restored, before it goes on."""
        self.prompt_growth = self.drawn
        self.prefilled, self.checkpoints_at, self.phase = 0, (), Phase.FETCHING
