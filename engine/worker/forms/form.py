"""A compiled form, and what it allows one row to draw next.

At every token llguidance gives one bit for each token of the vocabulary. numpy turns these bits into addends to the logits,
on every device: mlx-vlm's own way is a Metal kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from duet.errors import Internal, InvalidRequest
from engine.worker.answers.cursor import AnswerCursor
from engine.worker.forms.grammar import one_line

_BITS_AS_ADDENDS: Final = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") == 1, 0.0, -np.inf
).astype(np.float32)
"""[256, 8]: what the bits of a byte add to the logits of their tokens."""


class Mask:
    """Bits of a tokenizer's vocabulary as addends to logits [V]. All rows of the one thread share its buffers.

    Tokens of the model that the tokenizer does not have are forbidden; tokens that the model does not have are cut off.
    """

    def __init__(self, tokenizer_vocabulary: int) -> None:
        self._words = np.zeros(-(-tokenizer_vocabulary // 32), np.uint32)
        self._addends = np.zeros(0, np.float32)

    def of(self, matcher: LLMatcher, width: int) -> NDArray[np.float32]:
        """What `matcher` allows next, as [1, width] of 0 and minus infinity. Valid until the next call."""
        matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        known = len(self._words) * 32
        if len(self._addends) < max(known, width):
            self._addends = np.full(max(known, width), -np.inf, np.float32)
        rows = self._addends[:known].reshape(-1, 8)
        np.take(_BITS_AS_ADDENDS, self._words.view(np.uint8), axis=0, out=rows, mode="clip")
        return self._addends[None, :width]


@dataclass(frozen=True)
class Form:
    """A structure as one model can follow it.

    `matcher` stands before its first token. Where it is None the structure cannot be followed, and `refusal` says why
    ("" for a fault of ours).
    """

    matcher: LLMatcher | None
    refusal: str
    mask: Mask
    eos_ids: tuple[int, ...]

    @property
    def faulty(self) -> bool:
        return self.matcher is None and not self.refusal

    def constraint(self, param: str, cursor: AnswerCursor) -> FormConstraint:
        """A new one for one row. Raises `InvalidRequest` naming `param` when the form cannot be followed."""
        if self.matcher is not None:
            return FormConstraint(self, self.matcher.deep_copy(), param, cursor)
        if self.refusal:
            raise InvalidRequest(f"{param} {self.refusal}", param=param)
        raise Internal("the answer's form could not be compiled; the engine's log says more")


class FormConstraint:
    """Which tokens one row may draw next. `observe` never fails; `addends` reports what was wrong with what was observed.

    While `cursor` is in a thought every token is allowed but those that end the sequence.
    """

    def __init__(self, form: Form, matcher: LLMatcher, param: str, cursor: AnswerCursor) -> None:
        self._form, self._matcher, self._param, self._cursor = form, matcher, param, cursor
        self._unread: list[int] = []

    def observe(self, token: int) -> None:
        """A token of the answer became known."""
        self._unread.append(token)

    def addends(self, width: int) -> NDArray[np.float32]:
        """[1, width]: 0 for tokens that may come next, minus infinity for the others. Valid until any row's next call.

        Raises `InvalidRequest` when none of the model's tokens fits the form, or the form is too costly to follow.
        """
        unread, self._unread = self._unread, []
        for token in unread:
            self._read(token)
        if self._cursor.in_thought:
            found = np.zeros((1, width), np.float32)
            found[0, [token for token in self._form.eos_ids if token < width]] = -np.inf
            return found
        found = self._form.mask.of(self._matcher, width)
        if self._matcher.is_error() or not (found == 0).any():
            raise self._stuck()
        return found

    def _read(self, token: int) -> None:
        if self._cursor.in_thought:
            self._cursor.take(token)
        elif not self._matcher.consume_token(token):
            if self._matcher.is_error():
                raise self._stuck()
            raise RuntimeError("a token was drawn that the form forbids")

    def _stuck(self) -> InvalidRequest:
        problem = one_line(self._matcher.get_error()) or "none of the model's tokens fits"
        return InvalidRequest(f"{self._param}: the answer cannot go on in this form: {problem}", param=self._param)
