"""Thoughts before an answer. Templates of thinking models may end the prompt inside a think block: what the model says until
it closes the block is its thought, and the answer begins behind that."""

from __future__ import annotations

from engine.worker.answers.output import TokenText

_OPEN, _CLOSE = "<think>", b"</think>"


def opens_thought(prompt: str) -> bool:
    """Whether the prompt's text ends inside a think block. Only its end counts: messages may quote anything."""
    return prompt.rstrip().endswith(_OPEN)


class Thought:
    """A thought that the prompt has opened: `open` until the marker that closes it has come, in one token or in several."""

    def __init__(self, tokens: TokenText) -> None:
        self._tokens, self._tail = tokens, b""
        self.open = True

    def take(self, token: int) -> None:
        """One more token of the thought."""
        self._tail += self._tokens.bytes_of(token)
        self.open = _CLOSE not in self._tail
        self._tail = self._tail[-len(_CLOSE) :]
