"""The state of one sequence, as the scheduler sees it: counts, no tokens and no arrays."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """waiting → prefilling → running → ended. A sequence can end from anywhere."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    RUNNING = "running"
    ENDED = "ended"


@dataclass
class Sequence:
    """`prompt_tokens` ≥ 1; all but the last are prefilled, the last is the first decode input.

    `whole` sequences are prefilled in one piece. `issued` counts tokens drawn, read or not.
    """

    id: str
    prompt_tokens: int
    max_tokens: int
    whole: bool = False
    prefilled: int = 0
    issued: int = 0
    phase: Phase = Phase.WAITING

    @property
    def prefill_tokens(self) -> int:
        return self.prompt_tokens - 1

    @property
    def exhausted(self) -> bool:
        """Every token it may have is drawn: it must not take part in another step."""
        return self.issued >= self.max_tokens
