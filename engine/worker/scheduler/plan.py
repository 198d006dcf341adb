"""What the scheduler and the device say to each other in one tick. Values only: no MLX, no text."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class PrefillChunk:
    """Run prompt tokens start..end of one sequence. `joins`: that completes its prefill, and it becomes a row of the batch.
    `draws`: its first token is drawn at once, in a step of its own."""

    id: str
    start: int
    end: int
    joins: bool
    draws: bool = False


@dataclass(frozen=True)
class Plan:
    """One tick, in this order: rows leave, the others take one decode step, prompt chunks run, and complete prompts join.

    `preempted` rows are among those that leave, and come back.
    """

    leave: frozenset[str]
    decode: bool
    prefill: tuple[PrefillChunk, ...]
    preempted: frozenset[str] = frozenset()

    @property
    def empty(self) -> bool:
        return not (self.leave or self.decode or self.prefill)


@dataclass(frozen=True)
class Drawn:
    """A token of one row, with its log-probability and the best alternatives as (id, log-probability) if asked for."""

    id: str
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class StepResult:
    """What became of a plan.

    `drawn` are the tokens that were read in this tick, in order: none, one or several a row. The device computes a step while
    Python does something else, so a step's tokens are read in the next tick (a row's first token at once, because somebody waits
    for it). `in_flight` are the rows of a step whose tokens nobody has read yet: each of them will draw one token or more.
    `failed` are rows that failed by themselves, with the cause.
    """

    drawn: tuple[Drawn, ...] = ()
    in_flight: frozenset[str] = frozenset()
    failed: dict[str, Exception] = field(default_factory=dict)
