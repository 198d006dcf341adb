"""A generation request becomes a row: template, tokens, images, limits."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from duet.errors import InvalidRequest
from engine.kvstore.index import Media
from engine.types import GenerationRequest
from engine.worker.prompts.output import Detokeniser, Output, TokenText
from engine.worker.prompts.reasoning import Thought, opens_thought
from engine.worker.prompts.structured import Form
from engine.worker.prompts.template import answer_budget, render
from engine.worker.runtime.batch import Row
from engine.worker.runtime.families.vision import open_image, prepare
from engine.worker.runtime.loader import Loaded
from engine.worker.scheduler.sequence import Priority
from engine.worker.scheduler.sequence import Sequence as ScheduledSequence


@dataclass(frozen=True)
class Prepared:
    """One request, seen by the scheduler, the runner and the output."""

    sequence: ScheduledSequence
    row: Row
    output: Output
    text: str
    """The rendered prompt."""
    encoded: Any
    """Its tokens and their places in the text (`tokenizers.Encoding`), images not expanded."""


def prepare_generation(
    loaded: Loaded, tokens: TokenText, request: GenerationRequest, form: Form | None = None
) -> Prepared:
    """Raises `InvalidRequest` for what only the model can judge: images, context, token ids, and the answer's `form`, which
    belongs to the request's structure."""
    now = time.monotonic()
    if outside := [token for token in request.sampling.logit_bias if not 0 <= token < loaded.vocabulary]:
        raise InvalidRequest(f"token {outside[0]} is not in the vocabulary of {loaded.vocabulary}", param="logit_bias")
    text = render(loaded, request)
    images = [open_image(part.image) for message in request.messages for part in message.parts if part.type == "image"]
    encoded = loaded.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    vision = None
    if images:
        prompt, vision = prepare(loaded, text, images)
    else:
        prompt = tuple(encoded.ids)
    if not prompt:
        raise InvalidRequest("the prompt is empty", param="messages")
    max_tokens = answer_budget(len(prompt), request.max_tokens, loaded.context)
    constraint, thinks = None, False
    if form is not None and request.structure is not None:
        # The form is that of the answer, so it begins behind a thought, and the thought is not shown.
        thinks = opens_thought(text)
        constraint = form.constraint(request.structure.param, Thought(tokens) if thinks else None)
    return Prepared(
        ScheduledSequence(
            request.id,
            len(prompt),
            max_tokens,
            whole=vision is not None and vision.whole is not None,
            preemptible=vision is None,
            priority=Priority[request.priority.upper()],
            tenant=request.tenant,
            arrived=now,
            deadline=request.deadline,
        ),
        Row(request.id, prompt, request.sampling, vision=vision, constraint=constraint),
        Output(
            request.id,
            text=Detokeniser(loaded.tokenizer),
            tokens=tokens,
            stops=request.stop,
            eos_ids=loaded.eos_ids | _stop_ids(loaded.tokenizer, request.stop),
            prompt_tokens=len(prompt),
            max_tokens=max_tokens,
            thought=Thought(tokens) if thinks else None,
            stop_on_repetition=request.stop_on_repetition,
        ),
        text,
        encoded,
    )


def media_of(loaded: Loaded, request: GenerationRequest, prompt: Sequence[int]) -> tuple[Media, ...] | None:
    """Where the prompt's images stand, and what they are; None when that cannot be told.

    A run of image tokens is an image. Where a model breaks images into several runs, all of them together are one medium.
    """
    digests = [
        hashlib.sha256(part.image).digest()
        for message in request.messages
        for part in message.parts
        if part.type == "image"
    ]
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


def _stop_ids(tokenizer: Any, stops: tuple[str, ...]) -> frozenset[int]:
    """Stop strings that are special tokens: they never show in the text, so they end the answer as tokens."""
    special = set(tokenizer.all_special_tokens)
    return frozenset(tokenizer.convert_tokens_to_ids(stop) for stop in stops if stop in special)
