"""A generation request becomes a sequence, a row and an output: template, tokens, images, limits, answer format."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from duet.errors import InvalidRequest
from engine.kvstore.index import Media
from engine.types import Accepted, GenerationRequest, Part
from engine.worker.answers.channels import Channel
from engine.worker.answers.cursor import AnswerCursor
from engine.worker.answers.detokenise import Detokeniser, TokenText
from engine.worker.answers.formats.derive import answer_format
from engine.worker.answers.formats.spec import AnswerFormat
from engine.worker.answers.output import Output
from engine.worker.families.vision import image_tokens, prepare_images
from engine.worker.forms.compiling import FormQueue
from engine.worker.forms.form import Form, FormConstraint
from engine.worker.kvcache.absent import AbsentCache
from engine.worker.kvcache.guarded import GuardedCache
from engine.worker.kvcache.session import CacheRequest
from engine.worker.model import Loaded
from engine.worker.pictures import Picture, PictureDesk
from engine.worker.prompts.boundaries import Cuts, cuts, role_at
from engine.worker.prompts.raw import encoded, param_of, text_of
from engine.worker.prompts.template import answer_budget, ignored_fields
from engine.worker.runtime.batch import Row
from engine.worker.runtime.vision import VisionInputs
from engine.worker.scheduler.sequence import Sequence as ScheduledSequence
from engine.worker_config import ModelOptions


@dataclass(frozen=True)
class Prepared:
    """One request as the scheduler, the runner and the answer see it."""

    request: GenerationRequest
    sequence: ScheduledSequence
    row: Row
    output: Output
    text: str
    """The prompt's text."""
    encoded: Any
    """The tokens of `text` and their places in it (`tokenizers.Encoding`); images are not expanded."""
    accepted: Accepted
    """What the gateway is told of it, but for the KV cache."""
    digests: tuple[bytes, ...] = ()
    """Of the request's pictures, in their order."""


class EncodeJob:
    """A request with images on its way to be `Prepared`: a job of two steps. The first has the images decoded; it has no second
    turn before `pictures` are there. In the second the vision encoder runs."""

    def __init__(self, draft: _Draft, desk: PictureDesk) -> None:
        request = draft.request
        self.id, self.priority, self.tenant = request.id, request.priority, request.tenant
        self._draft, self._desk = draft, desk
        self.pictures: tuple[Picture, ...] | None = None

    @property
    def ready(self) -> bool:
        """Whether it can have a turn."""
        return self.pictures is not None or self._desk.free_for(self)

    def step(self) -> Prepared | None:
        """Raises `InvalidRequest` for images that the model cannot take, and for a prompt that is too long with them."""
        draft = self._draft
        if self.pictures is None:
            self._desk.begin(self, images_of(draft.request))
            return None
        self._desk.taken()
        encoding = encoded(draft.loaded, draft.request, draft.text)
        images = [picture.image for picture in self.pictures]
        # Before the work, which takes minutes and gigabytes for a prompt that does not fit.
        answer_budget(image_tokens(draft.loaded, images), None, draft.loaded.context, param=param_of(draft.request))
        prompt, vision = prepare_images(draft.loaded, draft.text, images)
        digests = tuple(picture.digest for picture in self.pictures)
        return replace(draft.prepared(encoding, prompt, vision), digests=digests)


class TextFamily:
    """Makes sequences of generation requests."""

    def __init__(self, loaded: Loaded, options: ModelOptions, forms: FormQueue, desk: PictureDesk) -> None:
        self._loaded, self._options, self._forms, self._desk = loaded, options, forms, desk

    @cached_property
    def _tokens(self) -> TokenText:
        return TokenText(self._loaded.tokenizer)

    def start(self, request: GenerationRequest) -> Prepared | EncodeJob | None:
        """None: the request waits for its form, and goes on with `prepare` when that is compiled. Raises as `prepare`."""
        form = None
        if request.structure is not None:
            form = self._forms.form(request, request.structure)
            if form is None:
                return None
        return self.prepare(request, form)

    def prepare(self, request: GenerationRequest, form: Form | None) -> Prepared | EncodeJob:
        """A sequence, or with images the job that becomes one. `form` is what the request's structure was compiled to.

        Raises `InvalidRequest` for what only the model can judge: context, token ids, and the form.
        """
        loaded = self._loaded
        if outside := [token for token in request.sampling.logit_bias if not 0 <= token < loaded.vocabulary]:
            vocabulary = f"the vocabulary of {loaded.vocabulary}"
            raise InvalidRequest(f"token {outside[0]} is not in {vocabulary}", param="logit_bias")
        text = text_of(loaded, request)
        draft = _Draft(request, text, time.monotonic(), loaded, self._tokens, answer_format(self._options, text))
        if form is not None and request.structure is not None:
            if draft.format.opens_thought(text):
                # The form is that of the answer, so it begins behind the thought. Without a form a thought is content.
                draft.begins_in = Channel.THOUGHT
            draft.constraint = form.constraint(request.structure.param, draft.cursor())
        if images_of(request):
            return EncodeJob(draft, self._desk)
        encoding = encoded(loaded, request, text)
        prompt = request.prompt if isinstance(request.prompt, tuple) else tuple(encoding.ids)
        return draft.prepared(encoding, prompt, None)


@dataclass
class _Draft:
    """A request whose prompt is text, and not yet tokens."""

    request: GenerationRequest
    text: str
    arrived: float
    loaded: Loaded
    tokens: TokenText
    format: AnswerFormat
    begins_in: Channel = Channel.CONTENT
    constraint: FormConstraint | None = None

    def cursor(self) -> AnswerCursor:
        return AnswerCursor(self.format, self.begins_in, self.tokens)

    def prepared(self, encoding: Any, prompt: tuple[int, ...], vision: VisionInputs | None) -> Prepared:
        """`prompt` are the token ids, with images expanded."""
        loaded, request = self.loaded, self.request
        if not prompt:
            raise InvalidRequest("the prompt is empty", param=param_of(request))
        max_tokens = answer_budget(len(prompt), request.max_tokens, loaded.context, param=param_of(request))
        sequence = ScheduledSequence(
            request.id,
            len(prompt),
            max(1, max_tokens),  # the prompt is computed for none too
            whole=vision is not None and vision.whole is not None,
            preemptible=vision is None,
            priority=request.priority,
            tenant=request.tenant,
            arrived=self.arrived,
        )
        output = Output(
            request.id,
            text=Detokeniser(loaded.tokenizer),
            tokens=self.tokens,
            cursor=self.cursor(),
            stop_strings=request.stop_strings,
            eos_ids=loaded.eos_ids | _stop_tokens(loaded.tokenizer, request.stop_strings),
            prompt_tokens=len(prompt),
            max_tokens=max_tokens,
            stop_on_repetition=request.stop_on_repetition,
            echo=self.text if request.echo else "",
        )
        row = Row(request.id, prompt, request.sampling, vision=vision, constraint=self.constraint)
        cut = request.max_tokens is not None and max_tokens < request.max_tokens
        accepted = Accepted(
            request.id,
            len(prompt),
            max_tokens=max_tokens if cut else None,
            ignored=ignored_fields(loaded, request),
        )
        return Prepared(request, sequence, row, output, self.text, encoding, accepted)


def images_of(request: GenerationRequest) -> list[Part]:
    return [part for message in request.messages for part in message.parts if part.type == "image"]


def media_of(loaded: Loaded, digests: Sequence[bytes], prompt: Sequence[int]) -> tuple[Media, ...] | None:
    """Which tokens of the prompt are the images with these digests; None when that cannot be told.

    A run of image tokens is one image. Where a model breaks images into several runs, all runs together are one medium.
    """
    if not digests:
        return ()
    places = [i for i, token in enumerate(prompt) if token == loaded.image_token_id]
    if not places:
        return None
    runs = [(places[0], places[0] + 1)]
    for place in places[1:]:
        if place == runs[-1][1]:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    if len(runs) == len(digests):
        return tuple(Media(start, stop, digest) for (start, stop), digest in zip(runs, digests, strict=True))
    return (Media(runs[0][0], runs[-1][1], hashlib.sha256(b"".join(digests)).digest()),)


def lookup(
    loaded: Loaded, prepared: Prepared, kv: GuardedCache | AbsentCache
) -> Callable[[tuple[int, ...]], bool] | None:
    """A function that asks `kv` for a prompt: first the request's own, later that of its preempted row (see `PrefixCache.open`).
    None when the KV of this prompt cannot be told apart from that of others."""
    request, prompt, text = prepared.request, prepared.row.prompt, prepared.text
    media = None if prepared.sequence.whole else media_of(loaded, prepared.digests, prompt)
    if media is None:
        return None
    has_state = kv.has_state and request.store
    where = cuts(loaded, request, text, prepared.encoded, prompt) if has_state else Cuts()
    asked = CacheRequest(
        request.id,
        media=media,
        tenant=request.tenant,
        store=request.store,
        system=where.system,
        document=where.document,
        boundary=where.boundary,
        role_at=partial(role_at, request, None if media else prepared.encoded, text),
    )
    return partial(kv.open, asked)


def _stop_tokens(tokenizer: Any, stop_strings: tuple[str, ...]) -> frozenset[int]:
    """Ids of stop strings that are special tokens. They never show in the text, so they end the answer as tokens."""
    special = set(tokenizer.all_special_tokens)
    return frozenset(tokenizer.convert_tokens_to_ids(stop) for stop in stop_strings if stop in special)
