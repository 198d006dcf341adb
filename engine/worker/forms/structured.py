"""Answers of a given form: a schema, regular expression, list of choices or grammar decides which tokens may come next.

llguidance (https://github.com/guidance-ai/llguidance) compiles a form for the model's tokenizer, and at every token gives one
bit a token of the vocabulary. Masks are made of those bits with numpy, on every device: mlx-vlm's own way is a Metal kernel.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, assert_never

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark
from numpy.typing import NDArray

from duet.errors import Internal, InvalidRequest
from engine.types import GenerationRequest, Structure
from engine.worker.answers.output import TokenText
from engine.worker.answers.reasoning import Thought
from engine.worker.forms.endless import endless_grammar, endless_schema
from engine.worker.model import Loaded

logger = logging.getLogger(__name__)

KEPT_FORMS: Final = 64
LIMITS: Final = LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
"""Bounds of compiling, of one token (some 15 ms) and of memory (1-2 kB a state): beyond them a request is refused or ends."""
JSON_OPTIONS: Final[Any] = {
    # As json.dumps writes, compact, or indented; never blanks without end, into which a model can fall.
    "whitespace_pattern": r"\n[ \t]{0,32}| ",
    "whitespace_flexible": True,
    "json_allow_general_unicode_escapes": True,
    "coerce_one_of": False,
    "lenient": False,
}
"""They stand above `x-guidance` in a schema, which could otherwise have parts of it ignored."""

_BITS_AS_ADDENDS: Final = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") == 1, 0.0, -np.inf
).astype(np.float32)
"""[256, 8]: what the bits of a byte add to the logits of their tokens."""

Key = tuple[str, str]
"""Kind and text of a structure."""


@dataclass(frozen=True)
class Compiled:
    """To the loop: the form that requests wait for is compiled, or cannot be."""

    key: Key
    form: Form


class Mask:
    """Bits of a tokenizer's vocabulary as addends to logits [V]. Buffers are used again by every row of the one thread.

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


class Constraint:
    """What one row may say next. Owned by the row; `observe` never fails, `addends` speaks for what was observed.

    Until a thought is over everything may be said but an end of the sequence.
    """

    def __init__(self, form: Form, matcher: LLMatcher, param: str, thought: Thought | None) -> None:
        self._form, self._matcher, self._param, self._thought = form, matcher, param, thought
        self._unread: list[int] = []

    def observe(self, token: int) -> None:
        """A token of the answer became known."""
        self._unread.append(token)

    def addends(self, width: int) -> NDArray[np.float32]:
        """[1, width]: 0 for tokens that may come next, minus infinity for the others. Valid until any row's next call.

        Raises `InvalidRequest` when the form leads where no token of the model fits, or is too costly to follow.
        """
        unread, self._unread = self._unread, []
        for token in unread:
            if self._thought is not None and self._thought.open:
                self._thought.take(token)
            elif not self._matcher.consume_token(token):
                if self._matcher.is_error():
                    raise self._stuck()
                raise RuntimeError("a token was drawn that the form forbids")
        if self._thought is not None and self._thought.open:
            found = np.zeros((1, width), np.float32)
            found[0, [token for token in self._form.eos_ids if token < width]] = -np.inf
            return found
        found = self._form.mask.of(self._matcher, width)
        if self._matcher.is_error() or not (found == 0).any():
            raise self._stuck()
        return found

    def _stuck(self) -> InvalidRequest:
        problem = _shortened(self._matcher.get_error()) or "none of the model's tokens fits"
        return InvalidRequest(f"{self._param}: the answer cannot go on in this form: {problem}", param=self._param)


@dataclass(frozen=True)
class Form:
    """A structure as one model can follow it: `matcher` before its first token; None says that it cannot, and `refusal` why
    ("" for a fault of ours)."""

    matcher: LLMatcher | None
    refusal: str
    mask: Mask
    eos_ids: tuple[int, ...]

    @property
    def faulty(self) -> bool:
        return self.matcher is None and not self.refusal

    def constraint(self, param: str, thought: Thought | None) -> Constraint:
        """A fresh one for one row. Raises `InvalidRequest` naming `param` when the form cannot be followed."""
        if self.matcher is not None:
            return Constraint(self, self.matcher.deep_copy(), param, thought)
        if self.refusal:
            raise InvalidRequest(f"{param} {self.refusal}", param=param)
        raise Internal("the answer's form could not be compiled; the engine's log says more")


class Grammars:
    """The forms that were asked of one model, the last of them compiled.

    Compiling takes from a millisecond to a second and is done in a thread of its own, with the interpreter's lock released,
    so that no row waits; the form comes back through `post`. Only the first form of all holds rows up once: reading
    a vocabulary of 152,000 tokens keeps the lock for some tenths of a second. Everything but `_compile_all` and what it
    calls belongs to the loop's thread.
    """

    def __init__(self, loaded: Loaded, post: Callable[[Compiled], None]) -> None:
        self._loaded, self._post = loaded, post
        self._forms = OrderedDict[Key, Form]()
        self._queue = queue.SimpleQueue[Structure]()
        self._thread: threading.Thread | None = None
        self.waiting: dict[Key, list[GenerationRequest]] = {}

    def form(self, request: GenerationRequest, structure: Structure) -> Form | None:
        """The form of a request's structure. None: the request waits for it, until `back` or `forget`."""
        key = (structure.kind, structure.text)
        if (found := self._forms.get(key)) is not None:
            self._forms.move_to_end(key)
            return found
        if key not in self.waiting:
            self.waiting[key] = []
            self._queue.put(structure)
        self.waiting[key].append(request)
        if self._thread is None:
            self._thread = threading.Thread(target=self._compile_all, name="grammars", daemon=True)
            self._thread.start()
        return None

    def back(self, compiled: Compiled) -> list[GenerationRequest]:
        """A form has come, and is kept unless it is a fault of ours. Returns who waits for it."""
        if not compiled.form.faulty:
            self._forms[compiled.key] = compiled.form
            while len(self._forms) > KEPT_FORMS:
                self._forms.popitem(last=False)
        return self.waiting.pop(compiled.key, [])

    def forget(self, request_id: str) -> None:
        """A request ends. It need not be one that waits. What nobody waits for is not compiled."""
        left = {key: [one for one in requests if one.id != request_id] for key, requests in self.waiting.items()}
        self.waiting = {key: requests for key, requests in left.items() if requests}

    # In the thread of its own ------------------------------------------------------------------------------------------

    def _compile_all(self) -> None:
        tokenizer: LLTokenizer | None = None
        mask, eos_ids = Mask(0), tuple[int, ...]()
        while True:
            structure = self._queue.get()
            key = (structure.kind, structure.text)
            if key not in self.waiting:
                continue
            form = Form(None, "", mask, eos_ids)
            try:
                if tokenizer is None:
                    tokenizer = wrapped_tokenizer(self._loaded)
                    mask, eos_ids = Mask(tokenizer.vocab_size), tuple(tokenizer.eos_tokens)
                form = Form(*compiled(tokenizer, structure), mask, eos_ids)
            except ValueError as error:
                form = Form(None, f"cannot be followed: {_shortened(str(error))}", mask, eos_ids)
            except BaseException:  # a panic of the library is no Exception, and this thread must go on
                logger.exception("a form could not be compiled", extra={"action": "structure_failed"})
            self._post(Compiled(key, form))


def wrapped_tokenizer(loaded: Loaded) -> LLTokenizer:
    """A model's tokenizer as llguidance reads it. Raises ValueError for a model that has no token that ends an answer.

    Given as bytes of tokens rather than as tokenizer.json: a quarter of the time and memory at a vocabulary of 150,000.
    """
    return LLTokenizer(TokenizerWrapper(_Vocabulary(loaded)), eos_token=_Vocabulary.ends(loaded))


class _Vocabulary:
    """What `TokenizerWrapper` asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, loaded: Loaded) -> None:
        self._backend = loaded.tokenizer.backend_tokenizer
        text, ends = TokenText(loaded.tokenizer), self.ends(loaded)
        size = max(self._backend.get_vocab_size(with_added_tokens=True), *(token + 1 for token in ends))
        self.tokens = [text.bytes_of(token) for token in range(size)]
        self.eos_token_id = ends[0]
        special = {token for token, added in loaded.tokenizer.added_tokens_decoder.items() if added.special}
        self.special_token_ids = sorted(token for token in special | set(ends) if token < size)

    @staticmethod
    def ends(loaded: Loaded) -> list[int]:
        found = sorted(token for token in loaded.eos_ids if loaded.tokenizer.convert_ids_to_tokens(token) is not None)
        if not found:
            raise ValueError("the model has no token that ends an answer")
        return found

    def __call__(self, text: bytes) -> list[int]:
        """llguidance asks how it would write text that the form demands."""
        encoded = self._backend.encode(text.decode(errors="replace"), add_special_tokens=False)
        return list(encoded.ids)


def compiled(tokenizer: LLTokenizer, structure: Structure) -> tuple[LLMatcher | None, str]:
    """A matcher before its first token, to be copied for each row; or None and why the structure cannot be followed."""
    try:
        grammar = _grammar(structure)
        endless = _is_endless(structure, tokenizer)
    except (ValueError, RecursionError, GbnfToLarkError) as error:
        return None, f"cannot be understood: {_shortened(str(error))}"
    if endless:
        return None, "has no answer that could ever be complete: it needs itself inside itself, without end"
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if matcher.is_error():
        return None, f"cannot be followed: {_shortened(matcher.get_error())}"
    # The first mask shows whether there is any text of this form, that behind what must come first what it costs.
    trial = matcher.deep_copy()
    trial.compute_bitmask()
    if not trial.is_error():
        trial.consume_tokens(trial.compute_ff_tokens())
        trial.compute_bitmask()
    if trial.is_error():
        return None, f"has no answer, or none that costs little enough to find: {_shortened(trial.get_error())}"
    return matcher, ""


def _grammar(structure: Structure) -> str:
    """In llguidance's own notation. Raises ValueError for what cannot be read."""
    match structure.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(structure.text, overrides=JSON_OPTIONS)
        case "regex":
            return LLMatcher.grammar_from_regex(structure.text)
        case "choice":
            # As one expression: as alternatives of a grammar some thousand are too many.
            return LLMatcher.grammar_from_regex("|".join(map(_literal, json.loads(structure.text))))
        case "grammar":
            return LLMatcher.grammar_from_lark(any_to_lark(structure.text))
        case _:
            assert_never(structure.kind)


def _literal(text: str) -> str:
    """The regular expression of exactly this text, in Rust's syntax."""
    return "".join(char if char.isalnum() or char in " _" else f"\\x{{{ord(char):x}}}" for char in text)


def _is_endless(structure: Structure, tokenizer: LLTokenizer) -> bool:
    def accepts_nothing(lark: str) -> bool | None:
        matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0, limits=LIMITS)
        return None if matcher.is_error() else matcher.is_accepting()

    match structure.kind:
        case "json_schema":
            return endless_schema(json.loads(structure.text))
        case "grammar":
            return endless_grammar(any_to_lark(structure.text), accepts_nothing)
        case _:
            return False


def _shortened(problem: str) -> str:
    """A message of llguidance on one line, without its inner state."""
    return " ".join(problem.partition("<state>")[0].split())[:300]
