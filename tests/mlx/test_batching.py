"""Requests together equal requests alone, and alone they equal mlx-vlm's own loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from engine.pictures.conversion import converted
from engine.types import GenerationRequest, TextDelta
from engine.worker.model import Loaded
from engine.worker.prompts.template import render
from tests import checkpoints
from tests.mlx.conftest import Driver, ask, picture, words

LENGTHS = [37, 700, 5, 260, 129, 1, 513, 90]
ARRIVALS = [0, 0, 3, 5, 9, 14, 20, 21]
TOKENS = [40, 24, 64, 33, 12, 50, 20, 30]
CASES = [(kind, dtype) for kind in checkpoints.KINDS for dtype in ("float32", "bfloat16")]


def oracle(loaded: Loaded, request: GenerationRequest) -> tuple[bytes, list[Any]]:
    """mlx-vlm's own single generation of the same request: its tokens, and at each the log-probabilities [V]."""
    from mlx_vlm.generate.ar import generate_step
    from mlx_vlm.utils import prepare_inputs

    language_model = loaded.model.language_model
    for name in ("_rope_deltas", "_position_ids"):
        if hasattr(language_model, name):
            setattr(language_model, name, None)
    text = render(loaded, request)
    images = [converted(part.image) for part in request.messages[0].parts if part.type == "image"]
    extra: dict[str, Any] = {}
    pixels = None
    if images:
        extra = dict(
            prepare_inputs(loaded.processor, images=images, prompts=text, image_token_index=loaded.image_token_id)
        )
        ids, pixels = extra.pop("input_ids"), extra.pop("pixel_values")
        mask = extra.pop("attention_mask", None)
    else:
        ids, mask = mx.array([loaded.tokenizer.encode(text, add_special_tokens=False)]), None
    steps = generate_step(ids, loaded.model, pixels, mask, max_tokens=request.max_tokens, temperature=0.0, **extra)
    found = [(int(token), np.array(logprobs.astype(mx.float32)).reshape(-1)) for token, logprobs in steps]
    return bytes(token for token, _ in found), [logprobs for _, logprobs in found]


def unexplained_difference(driver: Driver, request: GenerationRequest, loaded: Loaded) -> str:
    """ "" if the answers are equal, or if they part where the two best tokens are closer than rounding has moved them before."""
    expected, distributions = oracle(loaded, request)
    got = driver.run([request])[request.id]
    if got == expected:
        return ""
    at = next(i for i, (ours, theirs) in enumerate(zip(got, expected, strict=True)) if ours != theirs)
    ours = [event.logprob.logprob for event in driver.of(request.id, TextDelta)]
    # Up to here both have seen the same tokens: what differs in their log-probabilities is rounding.
    noise = max(abs(ours[i] - float(distributions[i][got[i]])) for i in range(at + 1))
    margin = float(distributions[at][expected[at]] - distributions[at][got[at]])
    return "" if margin <= 2 * noise else f"{request.id} at token {at}: margin {margin:.4f}, noise {noise:.4f}"


def mixed_requests(kind: str) -> list[GenerationRequest]:
    """Eight requests of 1 to 700 tokens; for the vision model some have pictures."""
    requests = []
    for i, (length, tokens) in enumerate(zip(LENGTHS, TOKENS, strict=True)):
        images = (picture(i, (96 + 32 * (i % 3), 64)),) if kind == "vision" and i % 2 else ()
        role = "raw" if length == 1 and not images else "user"
        requests.append(ask(f"r{i}", words(length, i), tokens=tokens, images=images, role=role))
    if kind == "vision":
        requests[5] = ask("r5", "q", tokens=50, role="raw")
    return requests


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_eight_requests_joining_at_different_times_equal_themselves_alone(
    model: Callable[..., Loaded], kind: str, dtype: str
) -> None:
    loaded = model(kind, dtype)
    company = Driver(loaded)
    together = company.run(mixed_requests(kind), ARRIVALS)
    singles = {request.id: Driver(loaded) for request in mixed_requests(kind)}
    alone = {request.id: singles[request.id].run([request])[request.id] for request in mixed_requests(kind)}
    assert len(set(alone.values())) >= 6, (
        "the checkpoint's answers do not depend on the prompt: the test proves nothing"
    )
    if dtype == "float32":
        assert together == alone
    else:
        # A batch has other shapes, and so other rounding: answers may part where the two best tokens are that close.
        assert not [name for name, single in singles.items() if not _part_by_rounding(company, single, name)]


def _part_by_rounding(company: Driver, single: Driver, name: str) -> bool:
    """Whether two runs of a request say the same, up to a place where each picked what was nearly as likely in the other."""
    noise = 0.0
    for ours, theirs in zip(company.of(name, TextDelta), single.of(name, TextDelta), strict=True):
        if ours.logprob.raw == theirs.logprob.raw:
            noise = max(noise, abs(ours.logprob.logprob - theirs.logprob.logprob))
            continue
        # Each is the best of its run: rounding can swap them only if they are close.
        return abs(ours.logprob.logprob - theirs.logprob.logprob) <= 4 * max(noise, 0.02)
    return True


@pytest.mark.parametrize(("kind", "dtype"), CASES)
def test_a_request_alone_equals_the_library_s_own_generation(
    model: Callable[..., Loaded], kind: str, dtype: str
) -> None:
    loaded = model(kind, dtype)
    for request in mixed_requests(kind):
        driver = Driver(loaded, chunk_tokens=4096)
        if dtype == "float32":
            assert driver.run([request])[request.id] == oracle(loaded, request)[0], request.id
        else:
            # The library runs the last prompt token with the others, we run it as the first step: other shapes, other rounding.
            assert not unexplained_difference(driver, request, loaded)


@pytest.mark.parametrize("kind", checkpoints.KINDS)
def test_chunked_prefill_equals_whole_prefill_in_float32(model: Callable[..., Loaded], kind: str) -> None:
    loaded = model(kind)
    request = mixed_requests(kind)[1]
    whole = Driver(loaded, chunk_tokens=4096).run([request])
    assert {size: Driver(loaded, chunk_tokens=size).run([request]) for size in (7, 64, 256)} == dict.fromkeys(
        (7, 64, 256), whole
    )


@pytest.mark.parametrize("kind", checkpoints.KINDS)
def test_a_greedy_row_beside_a_temperature_two_row_is_unchanged(
    model: Callable[..., Loaded], alone: Callable[..., bytes], kind: str
) -> None:
    loaded = model(kind)
    greedy = ask("greedy", words(50, 1), tokens=40)
    expected = alone(kind, greedy)
    hot = ask("hot", words(60, 2), tokens=40, temperature=2.0, seed=9)
    beside = Driver(loaded).run([greedy, hot])
    assert beside["greedy"] == expected
    assert beside["hot"] != Driver(loaded).run([ask("hot", words(60, 2), tokens=40)])["hot"]


def test_a_seeded_row_draws_the_same_alone_and_in_company(
    model: Callable[..., Loaded], alone: Callable[..., bytes]
) -> None:
    loaded = model("plain")
    hot = ask("hot", words(30, 4), tokens=40, temperature=1.3, top_p=0.9, seed=77)
    expected = alone("plain", hot)
    others = [ask(f"o{i}", words(20 + i, i), tokens=10 + 7 * i, temperature=float(i), seed=i) for i in range(4)]
    assert Driver(loaded).run([*others, hot], [0, 1, 2, 3, 5])["hot"] == expected
    assert (
        Driver(loaded).run([ask("hot", words(30, 4), tokens=40, temperature=1.3, top_p=0.9, seed=78)])["hot"]
        != expected
    )


def test_two_pictures_give_two_answers_and_mixed_requests_succeed_together(model: Callable[..., Loaded]) -> None:
    loaded = model("vision")
    requests = [
        ask("one", "what is this", images=(picture(1),)),
        ask("two", "what is this", images=(picture(2),)),
        ask("text", "what is this"),
        ask("both", "what are these", images=(picture(1), picture(2, (64, 96)))),
    ]
    driver = Driver(loaded)
    answers = driver.run(requests)
    assert {len(answer) for answer in answers.values()} == {24}
    assert len({answers["one"], answers["two"], answers["text"]}) == 3
    first = {name: driver.of(name, object)[1].logprob.logprob for name in ("one", "two")}
    assert first["one"] != first["two"], "the picture does not reach the logits"


def test_an_earlier_picture_does_not_change_a_later_text_request(model: Callable[..., Loaded]) -> None:
    loaded = model("hybrid")
    text = ask("text", words(40, 3))
    before = Driver(loaded).run([text])["text"]
    driver = Driver(loaded)
    driver.run([ask("picture", "look", images=(picture(5),))])
    assert driver.run([text])["text"] == before


def test_rows_keep_the_checkpoint_s_dtype_when_a_one_token_prompt_joins(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("plain", "bfloat16"))
    for request in (ask("a", words(40, 1)), ask("b", "x", role="raw"), ask("c", words(20, 2))):
        driver.post(request)
    for _ in range(4):
        driver.tick()
    assert {layer.keys.dtype for layer in driver.batch._cache} == {mx.bfloat16}
    driver.drain()
