"""What is known of how a model family writes its answers. Every fact of one family stands in one file of this folder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Marks:
    """The texts that open and close a part of an answer, in ASCII."""

    open: str
    close: str


@dataclass(frozen=True)
class AnswerFormat:
    """The syntax of one family's answers. `thought` marks what the model writes for itself before the answer; None if it
    has no such marks."""

    name: str
    thought: Marks | None = None

    def opens_thought(self, prompt: str) -> bool:
        """Whether the prompt's text ends inside a thought. Only its end counts: messages may quote anything."""
        return self.thought is not None and prompt.rstrip().endswith(self.thought.open)
