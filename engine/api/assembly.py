"""Events of one choice become a whole answer. This is the only place that adds them up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import assert_never

from duet.wire import Usage
from engine.types import Accepted, Event, Failed, Finished, FinishReason, Result, TextDelta, ThoughtDelta


@dataclass
class Answer:
    """What one choice has said so far. `tokens` are the deltas that came with log-probabilities; `reason` is None until the
    answer is complete."""

    pieces: list[str] = field(default_factory=list)
    tokens: list[TextDelta] = field(default_factory=list)
    reason: FinishReason | None = None
    repetition: bool = False
    usage: Usage = field(default_factory=Usage)
    accepted: Accepted | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def add(self, event: Event) -> None:
        """Raises the error that the choice failed with."""
        match event:
            case TextDelta():
                self.pieces.append(event.text)
                if event.logprob is not None:
                    self.tokens.append(event)
            case Finished():
                self.pieces.append(event.text)
                self.reason, self.usage, self.repetition = event.reason, event.usage, event.repetition
            case ThoughtDelta():
                pass  # no dialect shows thoughts yet
            case Accepted():
                self.accepted = event
            case Failed():
                raise event.as_error()
            case Result():
                raise TypeError(f"{type(event).__name__} is not part of a text")
            case _:
                assert_never(event)
