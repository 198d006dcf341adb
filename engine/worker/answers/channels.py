"""The text of one answer is split into what the model thinks and what it says."""

from __future__ import annotations

from enum import Enum

from engine.worker.answers.formats.spec import AnswerFormat
from engine.worker.answers.stops import overlap


class Channel(Enum):
    """What a piece of an answer is."""

    THOUGHT = "thought"
    CONTENT = "content"


Piece = tuple[Channel, str]
"""Text of one channel, never empty."""


class Channels:
    """Feed an answer's text piece by piece: how it is cut does not change what comes out.

    An answer begins in a thought if the prompt has opened one. The marker that closes it belongs to neither channel, and
    everything after it is content. Text is held back while it may be the beginning of that marker.
    """

    def __init__(self, answer_format: AnswerFormat, begins_in: Channel) -> None:
        self.channel = begins_in
        self._close = answer_format.thought.close if answer_format.thought is not None else ""
        self._held = ""

    def feed(self, text: str) -> list[Piece]:
        """What is certain now, in order."""
        if self.channel is Channel.CONTENT:
            return _pieces((Channel.CONTENT, text))
        thought, found, content = (self._held + text).partition(self._close)
        if found:
            self.channel, self._held = Channel.CONTENT, ""
            return _pieces((Channel.THOUGHT, thought), (Channel.CONTENT, content))
        certain = len(thought) - overlap(thought, self._close)
        self._held = thought[certain:]
        return _pieces((Channel.THOUGHT, thought[:certain]))

    def flush(self) -> list[Piece]:
        """The answer is over: what was held back is no marker."""
        held, self._held = self._held, ""
        return _pieces((self.channel, held))


def _pieces(*pieces: Piece) -> list[Piece]:
    return [piece for piece in pieces if piece[1]]
