"""Forms are compiled in a thread of their own; requests wait for them outside of the scheduler."""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from llguidance import LLTokenizer

from engine.types import GenerationRequest, Structure
from engine.worker.forms.form import Form, Mask
from engine.worker.forms.grammar import compile_structure, one_line
from engine.worker.forms.vocabulary import wrapped_tokenizer
from engine.worker.model import Loaded

logger = logging.getLogger(__name__)

KEPT_FORMS: Final = 64
Key = tuple[str, str]
"""Kind and text of a structure."""


@dataclass(frozen=True)
class Compiled:
    """To the loop: the form that requests wait for is compiled, or cannot be."""

    key: Key
    form: Form


class FormQueue:
    """The forms that were asked of one model: those that are being compiled, and the last `KEPT_FORMS` that were.

    Compiling takes from a millisecond to a second. It is done in a thread of its own with the interpreter's lock released,
    so no row waits for it; the form comes back through `post`. Only the very first form holds rows up once: reading a
    vocabulary of 152,000 tokens keeps the lock for some tenths of a second. Everything but `_compile_all` and what it calls
    belongs to the loop's thread.
    """

    def __init__(self, loaded: Loaded, post: Callable[[Compiled], None]) -> None:
        self._loaded, self._post = loaded, post
        self._forms = OrderedDict[Key, Form]()
        self._queue = queue.SimpleQueue[Structure]()
        self._thread: threading.Thread | None = None
        self.waiting: dict[Key, list[GenerationRequest]] = {}

    def form(self, request: GenerationRequest, structure: Structure) -> Form | None:
        """The form of a request's structure. None: the request waits for it, until `received` or `forget`."""
        key = (structure.kind, structure.text)
        if (found := self._forms.get(key)) is not None:
            self._forms.move_to_end(key)
            return found
        if key not in self.waiting:
            self.waiting[key] = []
            self._queue.put(structure)
        self.waiting[key].append(request)
        if self._thread is None:
            self._thread = threading.Thread(target=self._compile_all, name="forms", daemon=True)
            self._thread.start()
        return None

    def received(self, compiled: Compiled) -> list[GenerationRequest]:
        """A compiled form has come back. It is kept unless it is a fault of ours. Returns the requests that wait for it."""
        if not compiled.form.faulty:
            self._forms[compiled.key] = compiled.form
            while len(self._forms) > KEPT_FORMS:
                self._forms.popitem(last=False)
        return self.waiting.pop(compiled.key, [])

    def forget(self, request_id: str) -> None:
        """A request ends, whether it waits or not. A form that no request waits for any more is not compiled."""
        left = {key: [one for one in requests if one.id != request_id] for key, requests in self.waiting.items()}
        self.waiting = {key: requests for key, requests in left.items() if requests}

    def _compile_all(self) -> None:
        """The thread."""
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
                form = Form(*compile_structure(tokenizer, structure), mask, eos_ids)
            except ValueError as error:
                form = Form(None, f"cannot be followed: {one_line(str(error))}", mask, eos_ids)
            except BaseException:  # a panic of the library is no Exception, and this thread must go on
                logger.exception("a form could not be compiled", extra={"action": "structure_failed"})
            self._post(Compiled(key, form))
