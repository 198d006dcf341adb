"""Forms are judged in a child and compiled in a thread of their own; requests wait for them outside of the scheduler."""

from __future__ import annotations

import itertools
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
from engine.worker.forms.grammar import compiled, one_line
from engine.worker.forms.judging import TOO_COSTLY, shared_judge
from engine.worker.forms.messages import Verdict
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

    A child tells first whether a structure can be compiled, and how long that takes. What can be is compiled here, in a thread
    of its own with the interpreter's lock released, so no row waits for it; the cheapest comes first. The form comes back
    through `post`. Only the very first form holds rows up once: reading a vocabulary of 152,000 tokens keeps the lock for some
    tenths of a second. Everything but `_told`, `_compile_all` and what they call belongs to the loop's thread.
    """

    def __init__(self, loaded: Loaded, post: Callable[[Compiled], None]) -> None:
        self._loaded, self._post = loaded, post
        self._forms = OrderedDict[Key, Form]()
        self._queue = queue.PriorityQueue[tuple[float, int, Key, str]]()
        self._count = itertools.count()
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
            shared_judge().ask(structure, lambda: key in self.waiting, lambda verdict: self._told(key, verdict))
        self.waiting[key].append(request)
        if self._thread is None:
            self._thread = threading.Thread(target=self._compile_all, name="forms", daemon=True)
            self._thread.start()
        return None

    def received(self, compiled: Compiled) -> list[GenerationRequest]:
        """A compiled form has come back. It is kept unless it may be another next time: a fault of ours, or a question of the
        machine's load. Returns the requests that wait for it."""
        if not compiled.form.faulty and compiled.form.refusal != TOO_COSTLY:
            self._forms[compiled.key] = compiled.form
            while len(self._forms) > KEPT_FORMS:
                self._forms.popitem(last=False)
        return self.waiting.pop(compiled.key, [])

    def forget(self, request_id: str) -> None:
        """A request ends, whether it waits or not. A form that no request waits for any more is not compiled."""
        left = {key: [one for one in requests if one.id != request_id] for key, requests in self.waiting.items()}
        self.waiting = {key: requests for key, requests in left.items() if requests}

    def _told(self, key: Key, verdict: Verdict | Exception | None) -> None:
        """In the judge's thread."""
        match verdict:
            case Verdict(refusal=""):
                self._queue.put((verdict.seconds, next(self._count), key, verdict.grammar))
            case Verdict():
                self._post(Compiled(key, Form(None, verdict.refusal, Mask(0), ())))
            case Exception():
                logger.error("a form could not be judged", exc_info=verdict, extra={"action": "structure_failed"})
                self._post(Compiled(key, Form(None, "", Mask(0), ())))
            case None:
                pass  # nobody waits for it

    def _compile_all(self) -> None:
        """The thread."""
        tokenizer: LLTokenizer | None = None
        mask, eos_ids = Mask(0), tuple[int, ...]()
        while True:
            try:
                if tokenizer is None:  # while the first structure is judged
                    tokenizer = wrapped_tokenizer(self._loaded)
                    mask, eos_ids = Mask(tokenizer.vocab_size), tuple(tokenizer.eos_tokens)
                problem = ""
            except ValueError as error:
                problem = f"cannot be followed: {one_line(str(error))}"
            except BaseException:
                logger.exception("a vocabulary could not be read", extra={"action": "structure_failed"})
                problem = ""
            _, _, key, grammar = self._queue.get()
            if key not in self.waiting:
                continue
            form = Form(None, problem, mask, eos_ids)
            try:
                if tokenizer is not None:
                    form = Form(*compiled(tokenizer, grammar), mask, eos_ids)
            except BaseException:  # a panic of the library is no Exception, and this thread must go on
                logger.exception("a form could not be compiled", extra={"action": "structure_failed"})
            self._post(Compiled(key, form))
