"""Where one reader of an answer stands: in the thought, or behind it."""

from __future__ import annotations

from engine.worker.answers.channels import Channel, Channels, Piece
from engine.worker.answers.detokenise import RawText, TokenText
from engine.worker.answers.formats.spec import AnswerFormat


class AnswerCursor:
    """Reads an answer token by token. The mask and the text are a step apart, so each has a cursor of its own; both are made
    from the same format and see the thought end with the same token."""

    def __init__(self, answer_format: AnswerFormat, begins_in: Channel, tokens: TokenText) -> None:
        self._channels = Channels(answer_format, begins_in)
        self._text = RawText(tokens)
        self.in_thought = begins_in is Channel.THOUGHT

    def take(self, token: int) -> list[Piece]:
        """One more token, and the text that is certain because of it."""
        pieces = self._channels.feed(self._text.step(token))
        self.in_thought = self._channels.channel is Channel.THOUGHT
        return pieces

    def flush(self) -> list[Piece]:
        """The answer is over: what was held back."""
        return self._channels.flush()
