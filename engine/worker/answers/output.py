"""Tokens of one answer become events: its thought, incremental text, stop strings, log-probabilities, the end and its reason."""

from __future__ import annotations

from collections.abc import Sequence

from duet.wire import Usage
from engine.types import Finished, FinishReason, TextDelta, ThoughtDelta
from engine.worker.answers.channels import Channel, Piece
from engine.worker.answers.cursor import AnswerCursor
from engine.worker.answers.detokenise import Detokeniser, TokenText
from engine.worker.answers.repetition import Repetition
from engine.worker.answers.stops import StopMatcher


class Output:
    """The answer of one request so far.

    `max_tokens` bounds the tokens before an end-of-sequence token; 0: none is shown or counted. `cached_tokens` is how many
    tokens of the prompt were restored instead of computed. While `cursor` is in a thought, tokens become `ThoughtDelta`s. With
    `stop_on_repetition` an answer that repeats one piece without end is cut off like one that is too long. `echo` is sent before
    the first token, as a delta of no tokens.
    """

    def __init__(
        self,
        request_id: str,
        *,
        text: Detokeniser,
        tokens: TokenText,
        cursor: AnswerCursor,
        stop_strings: tuple[str, ...],
        eos_ids: frozenset[int],
        prompt_tokens: int,
        max_tokens: int,
        stop_on_repetition: bool = False,
        echo: str = "",
    ) -> None:
        self._repetition = Repetition() if stop_on_repetition else None
        self._id, self._text, self._tokens, self._cursor = request_id, text, tokens, cursor
        self._stops, self._eos_ids = StopMatcher(stop_strings), eos_ids
        self._prompt_tokens, self._max_tokens = prompt_tokens, max_tokens
        self.cached_tokens = 0
        self._completion_tokens = 0
        self._echo = echo

    def take(
        self, token: int, logprob: float | None, top: Sequence[tuple[int, float]]
    ) -> list[ThoughtDelta | TextDelta | Finished]:
        """The events of one token, in order: a delta, unless it ends the sequence, and `Finished` if it is the last one."""
        events = self._taken(token, logprob, top)
        if self._echo:
            events.insert(0, TextDelta(self._id, self._echo, tokens=0))
            self._echo = ""
        return events

    def _taken(
        self, token: int, logprob: float | None, top: Sequence[tuple[int, float]]
    ) -> list[ThoughtDelta | TextDelta | Finished]:
        if not self._max_tokens:
            return [self._finished("length", "")]
        self._completion_tokens += 1
        if token in self._eos_ids:
            held = self._thought(self._cursor.flush(), tokens=0)
            finished = self._finished("stop", self._stops.flush())
            return [held, finished] if held.text else [finished]
        if self._cursor.in_thought:
            pieces = self._cursor.take(token)
            if not self._is_last:
                return [self._thought(pieces)]
            return [self._thought(pieces + self._cursor.flush()), self._finished("length", "")]
        shown, stopped = self._stops.feed(self._text.step(token))
        delta = TextDelta(
            self._id,
            shown,
            None if logprob is None else self._tokens.logprob(token, logprob),
            tuple(self._tokens.logprob(other, value) for other, value in top),
        )
        if stopped:
            return [delta, self._finished("stop", "")]
        if self._repetition is not None and self._repetition.found(token):
            return [delta, self._finished("length", self._stops.flush(), repetition=True)]
        if self._is_last:
            return [delta, self._finished("length", self._stops.flush())]
        return [delta]

    def _thought(self, pieces: list[Piece], *, tokens: int = 1) -> ThoughtDelta:
        # The form begins with the next token, so text behind the marker, in the token that completes it, is not of the answer.
        text = "".join(text for channel, text in pieces if channel is Channel.THOUGHT)
        return ThoughtDelta(self._id, text, tokens)

    @property
    def _is_last(self) -> bool:
        return self._completion_tokens >= self._max_tokens

    def _finished(self, reason: FinishReason, rest: str, *, repetition: bool = False) -> Finished:
        usage = Usage(self._prompt_tokens, self._completion_tokens, self.cached_tokens)
        return Finished(self._id, reason, usage, rest, repetition)
