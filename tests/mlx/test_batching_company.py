"""Other rows change nothing in a row: crowds, cancellations at any tick, caches that cannot run together."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest
from mlx_vlm.models.cache import ArraysCache, ChunkedKVCache, KVCache, QuantizedKVCache, RotatingKVCache

from engine.fleet.protocol import Cancel
from engine.types import Accepted, Failed, Finished, GenerationRequest, TextDelta
from engine.worker.caches import can_batch
from engine.worker.model import Loaded
from tests import checkpoints
from tests.mlx.conftest import Driver, ask, picture, words


@pytest.mark.parametrize("kind", checkpoints.KINDS)
def test_prompts_of_one_token_may_all_come_at_once(
    model: Callable[..., Loaded], alone: Callable[..., bytes], kind: str
) -> None:
    loaded = model(kind, "bfloat16")
    requests = [ask(f"r{i}", char, role="raw") for i, char in enumerate("abcde")]
    expected = {request.id: alone(kind, request, dtype="bfloat16") for request in requests}
    assert Driver(loaded).run(requests) == expected


@pytest.mark.parametrize("kind", checkpoints.KINDS)
def test_a_row_cancelled_in_the_tick_it_joined_leaves_the_others_unchanged(
    model: Callable[..., Loaded], alone: Callable[..., bytes], kind: str
) -> None:
    loaded = model(kind)
    requests = [ask(f"r{i}", char, role="raw") for i, char in enumerate("abc")]
    expected = {request.id: alone(kind, request) for request in requests}
    driver = Driver(loaded)
    for request in requests:
        driver.post(request)
    driver.tick()
    driver.post(Cancel("r1"))
    driver.drain()
    assert [driver.raw(name) for name in ("r0", "r2")] == [expected["r0"], expected["r2"]]
    assert not driver.of("r1", TextDelta)


@pytest.mark.parametrize("kind", checkpoints.KINDS)
def test_random_arrivals_and_cancellations_change_no_survivor(
    model: Callable[..., Loaded], alone: Callable[..., bytes], kind: str
) -> None:
    loaded, chance = model(kind), random.Random(kind)
    requests = [
        ask(f"r{i}", words(chance.choice([1, 3, 20, 90, 200]), i), tokens=chance.randint(1, 40), role=role)
        for i, role in enumerate(["user", "raw"] * 8)
    ]
    arrivals = [chance.randint(0, 40) for _ in requests]
    cancelled = {request.id: chance.randint(0, 60) for request in requests[::3]}
    driver = Driver(loaded, max_rows=5, chunk_tokens=32)
    for now in range(200):
        for request, arrival in zip(requests, arrivals, strict=True):
            if arrival == now:
                driver.post(request)
        for name, at in cancelled.items():
            if at == now:
                driver.post(Cancel(name))
        if not (driver.loop.idle and driver.mailbox.empty()):
            driver.tick()
            assert driver.rows().keys() == driver.scheduled()
    driver.drain()
    survivors = [request for request in requests if request.id not in cancelled]
    assert len(survivors) == 10
    for request in survivors:
        assert driver.raw(request.id) == alone(kind, request), request.id
    for name in cancelled:
        assert len(driver.of(name, Finished)) <= 1
        assert not driver.of(name, Failed)


@pytest.mark.parametrize("penalty", [{"repetition_penalty": 1.5}, {"presence_penalty": 1.0, "frequency_penalty": 0.5}])
def test_penalties_change_their_row_the_same_way_alone_and_in_company(
    model: Callable[..., Loaded], alone: Callable[..., bytes], penalty: dict[str, Any]
) -> None:
    loaded = model("plain")
    free, bound = ask("free", words(30, 1), tokens=40), ask("bound", words(30, 1), tokens=40, **penalty)
    expected = {request.id: alone("plain", request) for request in (free, bound)}
    assert expected["free"] != expected["bound"]
    assert Driver(loaded).run([free, bound], [0, 5]) == expected


def test_a_bias_can_force_a_token_and_forbid_it(model: Callable[..., Loaded]) -> None:
    loaded = model("plain")
    forced = Driver(loaded).run([ask("a", "hello", tokens=6, logit_bias={ord("z"): 100.0})])["a"]
    assert forced == b"zzzzzz"
    first = Driver(loaded).run([ask("a", "hello", tokens=1)])["a"][0]
    assert Driver(loaded).run([ask("a", "hello", tokens=1, logit_bias={first: -100.0})])["a"][0] != first


def test_a_stop_that_is_a_special_token_ends_the_answer_though_it_never_shows(model: Callable[..., Loaded]) -> None:
    loaded = model("plain")
    special = loaded.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    driver = Driver(loaded)
    for name, stop in (("with", ("<|image_pad|>",)), ("without", ())):
        driver.run([ask(name, "hello", tokens=6, logit_bias={special: 100.0}, stop=stop)])
    ends = {name: driver.of(name, Finished)[0] for name in ("with", "without")}
    assert [(end.reason, end.usage.completion_tokens) for end in ends.values()] == [("stop", 1), ("length", 6)]
    assert driver.text("without") == ""


def test_requests_without_a_seed_differ(model: Callable[..., Loaded]) -> None:
    requests = [ask(f"r{i}", words(30, 4), tokens=40, temperature=1.5) for i in range(2)]
    answers = Driver(model("plain")).run(requests)
    assert answers["r0"] != answers["r1"]


def test_every_request_is_accepted_before_its_tokens_and_ends_once(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("plain"), max_rows=2)
    requests = [ask(f"r{i}", words(10 * i + 1, i), tokens=5 + i) for i in range(6)]
    driver.run(requests)
    for request in requests:
        kinds = [type(event) for event in driver.recorder.sent if event.id == request.id]
        assert kinds == [Accepted, *[TextDelta] * request.max_tokens, Finished]


class PositionsInState:
    """A model that leaves M-RoPE positions in its own state instead of returning them, as several OCR models do."""

    def __init__(self, model: Any) -> None:
        self.language_model = model.language_model
        self._model = model

    def get_input_embeddings(self, *arguments: Any, **named: Any) -> Any:
        features = self._model.get_input_embeddings(*arguments, **named)
        self.language_model._position_ids, features.position_ids = features.position_ids, None
        self.language_model._rope_deltas, features.rope_deltas = features.rope_deltas, None
        return features


def test_positions_left_in_the_model_s_state_are_used_and_cleared(model: Callable[..., Loaded]) -> None:
    loaded = model("vision")
    request = ask("picture", "what is this", images=(picture(1, (128, 96)),))
    expected = Driver(loaded).run([request])
    leaving = dataclasses.replace(loaded, model=PositionsInState(loaded.model))
    assert Driver(leaving).run([request]) == expected
    assert loaded.model.language_model._position_ids is None
    assert loaded.model.language_model._rope_deltas is None


def test_a_model_whose_caches_cannot_run_together_serves_one_request_after_another(
    model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = model("plain")
    requests: list[GenerationRequest] = [ask(f"r{i}", words(20 + i, i), tokens=8) for i in range(3)]
    expected = Driver(loaded).run(requests)
    layers = len(loaded.model.language_model.layers)
    monkeypatch.setattr(
        loaded.model.language_model, "make_cache", lambda: [ChunkedKVCache(4096) for _ in range(layers)], raising=False
    )
    assert Driver(loaded).run(requests) == expected


def test_which_of_the_library_s_caches_can_run_together() -> None:
    together = [KVCache(), RotatingKVCache(max_size=8), ArraysCache(2)]
    assert [can_batch([layer]) for layer in together] == [True, True, True]
    assert [can_batch([layer]) for layer in (ChunkedKVCache(8), QuantizedKVCache())] == [False, False]


@pytest.mark.parametrize("make", [KVCache, lambda: RotatingKVCache(max_size=8)], ids=["plain", "rotating"])
def test_merging_an_empty_row_keeps_the_dtype_and_the_rows(make: Callable[[], Any]) -> None:
    """The batch relies on this: `extend` would turn everything into float32."""
    filled = make()
    keys = mx.random.normal((1, 2, 5, 4)).astype(mx.bfloat16)
    filled.update_and_fetch(keys, keys)
    merged = type(filled).merge([filled, make()])
    assert merged.keys.dtype == mx.bfloat16
    row = merged.extract(0)
    assert row.offset == 5
    assert mx.array_equal(row.keys, keys)
