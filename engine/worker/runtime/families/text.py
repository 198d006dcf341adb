"""A generation request becomes a row: template, tokens, images, limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from duet.errors import InvalidRequest
from engine.types import GenerationRequest
from engine.worker.prompts.output import Detokeniser, Output, TokenText
from engine.worker.prompts.template import answer_budget, render
from engine.worker.runtime.batch import Row
from engine.worker.runtime.families.vision import open_image, prepare
from engine.worker.runtime.loader import Loaded
from engine.worker.scheduler.sequence import Sequence


@dataclass(frozen=True)
class Prepared:
    """One request, seen by the scheduler, the runner and the output."""

    sequence: Sequence
    row: Row
    output: Output


def prepare_generation(loaded: Loaded, tokens: TokenText, request: GenerationRequest) -> Prepared:
    """Raises `InvalidRequest` for what only the model can judge: images, context, token ids."""
    if outside := [token for token in request.sampling.logit_bias if not 0 <= token < loaded.vocabulary]:
        raise InvalidRequest(f"token {outside[0]} is not in the vocabulary of {loaded.vocabulary}", param="logit_bias")
    text = render(loaded, request)
    images = [open_image(part.image) for message in request.messages for part in message.parts if part.type == "image"]
    vision = None
    if images:
        prompt, vision = prepare(loaded, text, images)
    else:
        prompt = tuple(loaded.tokenizer.encode(text, add_special_tokens=False))
    if not prompt:
        raise InvalidRequest("the prompt is empty", param="messages")
    max_tokens = answer_budget(len(prompt), request.max_tokens, loaded.context)
    return Prepared(
        Sequence(request.id, len(prompt), max_tokens, whole=vision is not None and vision.whole is not None),
        Row(request.id, prompt, request.sampling, vision=vision),
        Output(
            request.id,
            text=Detokeniser(loaded.tokenizer),
            tokens=tokens,
            stops=request.stop,
            eos_ids=loaded.eos_ids | _stop_ids(loaded.tokenizer, request.stop),
            prompt_tokens=len(prompt),
            max_tokens=max_tokens,
        ),
    )


def _stop_ids(tokenizer: Any, stops: tuple[str, ...]) -> frozenset[int]:
    """Stop strings that are special tokens: they never show in the text, so they end the answer as tokens."""
    special = set(tokenizer.all_special_tokens)
    return frozenset(tokenizer.convert_tokens_to_ids(stop) for stop in stops if stop in special)
