"""What is worth keeping, and where checkpoints are taken: pure decisions."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Final, Literal

MIN_TOKENS: Final = 64
"""A checkpoint is as large as the KV of hundreds of tokens: closer to another one it is not worth its bytes."""
MAX_CHECKPOINTS: Final = 3
"""Per prompt. One of them is for the end of the answer."""
DOCUMENT_TOKENS: Final = 512
"""A document that may come again is worth a checkpoint from this length on."""
WORTH_SECONDS: Final = 2.0
WORTH_BYTES_A_SECOND: Final = 64 << 20
"""A sequence seen for the first time goes to SSD if its prefill took `WORTH_SECONDS` and it costs no more than these bytes for
each second of prefill: a restart hurts most with models that prefill slowly. Anything faster waits until it is seen again,
which spares the SSD."""
MIN_MEASURED: Final = 32
"""A prefill of fewer tokens says too little about speed."""

Place = Literal["system", "divergence", "document", "boundary"]


@dataclass(frozen=True)
class Checkpoint:
    """A position at which prefill pauses, so that the state layers can be kept, and why."""

    position: int
    place: Place

    @property
    def tip(self) -> bool:
        """Whether the next turn outgrows it."""
        return self.place == "boundary"

    @property
    def wanted(self) -> bool:
        """Whether two prompts have wanted it already: both have the beginning before the token at which they part."""
        return self.place == "divergence"


def checkpoints(
    *, system: int, document: int, boundary: int, restored: int, matched: int, known: Container[int]
) -> tuple[Checkpoint, ...]:
    """The checkpoints of a prompt after `restored`, in order. They leave one of `MAX_CHECKPOINTS` for the answer's end.

    `system`, `document` and `boundary` are token positions, 0 when there is none. `matched` tokens are the same as in a known
    prompt: if that is more than `restored`, others share a beginning whose state nobody has. The document's end is a guess,
    so it counts only when nothing certain is there. Positions in `known` have a checkpoint already.
    """
    wanted: list[Checkpoint] = []
    if matched - restored >= MIN_TOKENS:
        wanted.append(Checkpoint(matched, "divergence"))
    if system - restored >= MIN_TOKENS and all(abs(system - other.position) >= MIN_TOKENS for other in wanted):
        wanted.append(Checkpoint(system, "system"))
    if not wanted and document - restored >= DOCUMENT_TOKENS:
        wanted.append(Checkpoint(document, "document"))
    if boundary > restored and boundary >= MIN_TOKENS:
        wanted.append(Checkpoint(boundary, "boundary"))
    chosen: dict[int, Checkpoint] = {}
    for checkpoint in wanted[: MAX_CHECKPOINTS - 1]:
        if checkpoint.position not in known:
            chosen.setdefault(checkpoint.position, checkpoint)
    return tuple(sorted(chosen.values(), key=lambda checkpoint: checkpoint.position))


def is_conversation(*, restored: int, system: int, prompt: int) -> bool:
    """Whether the prompt continues what was kept before, beyond a system message that many share."""
    return restored > system + MIN_TOKENS and 2 * restored >= prompt


def is_worth(*, total_seconds: float, seconds: float, size: int) -> bool:
    """Whether an entry of `size` bytes goes to SSD at first sight. The prefill of its sequence took `total_seconds`, and
    `seconds` of them were for this entry."""
    return total_seconds >= WORTH_SECONDS and size <= WORTH_BYTES_A_SECOND * seconds


class PrefillSpeed:
    """How fast this model prefills here: seconds a token, smoothed; 0 before the first measurement."""

    def __init__(self) -> None:
        self.seconds_a_token = 0.0

    def measure(self, tokens: int, seconds: float) -> None:
        """A row computed `tokens` of its prompt in `seconds`."""
        if tokens < MIN_MEASURED:
            return
        now = seconds / tokens
        self.seconds_a_token = now if not self.seconds_a_token else 0.7 * self.seconds_a_token + 0.3 * now
