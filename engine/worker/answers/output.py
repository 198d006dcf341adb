"""Tokens of one answer become events: incremental text, stop strings, log-probabilities, the end and its reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tokenizers.decoders import DecodeStream

from duet.wire import Usage
from engine.types import Finished, FinishReason, TextDelta, TokenLogprob
from engine.worker.answers.repetition import Repetition
from engine.worker.answers.stops import StopMatcher


class TextStream(Protocol):
    """Token ids in, text out; "" or None while a character is incomplete."""

    def step(self, token: int) -> str | None: ...


class Detokeniser:
    """Incremental detokenisation of one answer: constant cost a token, whole characters only, special tokens left out."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def step(self, token: int) -> str | None:
        try:
            return self._stream.step(self._backend, token)
        except Exception as error:  # the library raises nothing more exact
            # Byte tokens that are no UTF-8 change what was shown before them: the text goes on from here.
            if "prefix" not in str(error):
                raise
            self._stream = DecodeStream(skip_special_tokens=True)
            return self._stream.step(self._backend, token)


class TokenText:
    """Text and exact bytes of single tokens, for log-probabilities."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = frozenset(tokenizer.get_added_vocab())
        # The same characters mean bytes in a byte-level vocabulary and themselves in a sentencepiece one.
        self._bytes = _byte_level_alphabet() if _is_byte_level(tokenizer) else None

    def bytes_of(self, token: int) -> bytes:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""
        if piece in self._added:
            return str(piece).encode()
        if self._bytes is not None and all(char in self._bytes for char in piece):
            return bytes(self._bytes[char] for char in piece)
        if len(piece) == 6 and piece.startswith("<0x"):  # a byte of a sentencepiece vocabulary
            return bytes([int(piece[3:5], 16)])
        return str(piece).replace("▁", " ").encode()

    def logprob(self, token: int, value: float) -> TokenLogprob:
        data = self.bytes_of(token)
        return TokenLogprob(data.decode(errors="replace"), data, value)


class OpenThought(Protocol):
    """What comes before the answer and is not shown: see `engine.worker.answers.reasoning`."""

    open: bool

    def take(self, token: int) -> None: ...


class Output:
    """The answer of one request so far. `max_tokens` counts tokens before an end-of-sequence token; `cached_tokens` of the
    prompt were not computed. A `thought` that the prompt has opened is counted and not shown. With `stop_on_repetition` an answer
    that goes round in circles ends as one that is too long."""

    def __init__(
        self,
        request_id: str,
        *,
        text: TextStream,
        tokens: TokenText,
        stops: tuple[str, ...],
        eos_ids: frozenset[int],
        prompt_tokens: int,
        max_tokens: int,
        thought: OpenThought | None = None,
        stop_on_repetition: bool = False,
    ) -> None:
        self._repetition = Repetition() if stop_on_repetition else None
        self._id, self._text, self._tokens = request_id, text, tokens
        self._stops, self._eos_ids = StopMatcher(stops), eos_ids
        self._prompt_tokens, self._max_tokens, self._thought = prompt_tokens, max_tokens, thought
        self.cached_tokens = 0
        self._completion_tokens = 0

    def take(
        self, token: int, logprob: float | None, top: Sequence[tuple[int, float]]
    ) -> tuple[TextDelta | None, Finished | None]:
        """The events of one token: a delta, unless it ends the sequence, and the end if this is it."""
        self._completion_tokens += 1
        if token in self._eos_ids:
            return None, self._finished("stop", self._stops.flush())
        if self._thought is not None and self._thought.open:
            self._thought.take(token)
            return None, self._finished("length", "") if self._completion_tokens >= self._max_tokens else None
        shown, stopped = self._stops.feed(self._text.step(token) or "")
        delta = TextDelta(
            self._id,
            shown,
            None if logprob is None else self._tokens.logprob(token, logprob),
            tuple(self._tokens.logprob(other, value) for other, value in top),
        )
        if stopped:
            return delta, self._finished("stop", "")
        if self._repetition is not None and self._repetition.found(token):
            return delta, self._finished("length", self._stops.flush(), repetition=True)
        if self._completion_tokens >= self._max_tokens:
            return delta, self._finished("length", self._stops.flush())
        return delta, None

    def _finished(self, reason: FinishReason, rest: str, *, repetition: bool = False) -> Finished:
        usage = Usage(self._prompt_tokens, self._completion_tokens, self.cached_tokens)
        return Finished(self._id, reason, usage, rest, repetition)


def _is_byte_level(tokenizer: Any) -> bool:
    """As the tokenizer's decoder says (its state is the JSON of tokenizer.json)."""
    decoder = tokenizer.backend_tokenizer.decoder
    return decoder is not None and b'"ByteLevel"' in decoder.__getstate__()


def _byte_level_alphabet() -> dict[str, int]:
    """Characters by which byte-level BPE writes bytes (GPT-2's table: printable bytes as themselves)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
