"""What is worth keeping, and where checkpoints are taken: pure decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

MIN_TOKENS: Final = 64
"""A checkpoint is as large as hundreds of tokens of KV: nearer to another one it is not worth its bytes."""
MAX_CHECKPOINTS: Final = 3
"""A prompt's, its end included."""
DOCUMENT_TOKENS: Final = 512
"""A document that may come again is worth a checkpoint from this length on."""
WORTH_SECONDS: Final = 2.0
WORTH_BYTES_A_SECOND: Final = 64 << 20
"""A sequence seen for the first time goes to SSD if its prefill took this long and costs no more bytes a second of it: models
that prefill slowly, for which a restart is worst. What is faster waits until it is seen again (wear of the SSD)."""

Place = Literal["system", "divergence", "document", "boundary"]


@dataclass(frozen=True)
class Stop:
    """Where prefill pauses for a checkpoint."""

    position: int
    place: Place

    @property
    def tip(self) -> bool:
        """Whether the next turn outgrows it."""
        return self.place == "boundary"


def stops(
    *, system: int, document: int, boundary: int, restored: int, matched: int, known: Sequence[int]
) -> tuple[Stop, ...]:
    """Positions after `restored` at which a checkpoint is taken, in order; one place of `MAX_CHECKPOINTS` is the answer's end.

    `system`, `document` and `boundary` are 0 when there is none. A guess, as the document's end is one, gives way to what is
    known. `matched` is how far the prompt is the same as a known one: more than
    `restored` means that others share a beginning whose state nobody has. `known` positions have a checkpoint already.
    """
    wanted: list[Stop] = []
    if matched - restored >= MIN_TOKENS:
        wanted.append(Stop(matched, "divergence"))
    if system - restored >= MIN_TOKENS and all(abs(system - stop.position) >= MIN_TOKENS for stop in wanted):
        wanted.append(Stop(system, "system"))
    if not wanted and document - restored >= DOCUMENT_TOKENS:
        wanted.append(Stop(document, "document"))
    if boundary > restored and boundary >= MIN_TOKENS:
        wanted.append(Stop(boundary, "boundary"))
    chosen: dict[int, Stop] = {}
    for stop in wanted[: MAX_CHECKPOINTS - 1]:
        if stop.position not in known:
            chosen.setdefault(stop.position, stop)
    return tuple(sorted(chosen.values(), key=lambda stop: stop.position))


def is_conversation(*, restored: int, system: int, prompt: int) -> bool:
    """Whether the prompt goes on with what was kept before, beyond a system message that many share."""
    return restored > system + MIN_TOKENS and 2 * restored >= prompt


def is_worth(*, total_seconds: float, seconds: float, size: int) -> bool:
    """Whether an entry goes to SSD at first sight: `seconds` of its sequence's `total_seconds` of prefill are its own."""
    return total_seconds >= WORTH_SECONDS and size <= WORTH_BYTES_A_SECOND * seconds
