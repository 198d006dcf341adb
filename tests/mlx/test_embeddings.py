"""Embeddings: batched equals single, text equals its token ids, bounds are refused by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import models
from duet.errors import ContextTooLong, InvalidRequest
from engine.types import Embedded, EmbeddingRequest, Failed
from engine.worker.families.embedding import start_embedding
from engine.worker.model import Loaded
from engine.worker.runtime.loader import load
from engine.worker.scheduler.order import AGEING_SECONDS
from tests.mlx.conftest import Driver, words

TEXTS = tuple(words(length, length) for length in (3, 40, 17, 200, 1, 90))


def embed(loaded: Loaded, *inputs: Any, dimensions: int | None = None) -> np.ndarray[Any, Any]:
    driver = Driver(loaded)
    driver.post(EmbeddingRequest(id="e", model="m", inputs=inputs, dimensions=dimensions))
    driver.drain()
    (result,) = driver.of("e", Embedded)
    return np.frombuffer(result.vectors, "<f4").reshape(len(inputs), result.dimensions)


def test_a_batch_equals_its_inputs_alone_in_the_order_they_came(model: Callable[..., Loaded]) -> None:
    loaded = model("embedding")
    together = embed(loaded, *TEXTS)
    alone = np.concatenate([embed(loaded, text) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.01


def test_vectors_have_unit_length_also_when_they_are_shortened(model: Callable[..., Loaded]) -> None:
    loaded = model("embedding")
    full, short = embed(loaded, *TEXTS), embed(loaded, *TEXTS, dimensions=16)
    np.testing.assert_allclose(np.linalg.norm(full, axis=1), 1, atol=1e-5)
    expected = full[:, :16] / np.linalg.norm(full[:, :16], axis=1, keepdims=True)
    np.testing.assert_allclose(short, expected, atol=1e-5)


def test_token_ids_give_the_vector_of_their_text(model: Callable[..., Loaded]) -> None:
    loaded = model("embedding")
    ids = tuple(loaded.tokenizer.encode("hello"))
    np.testing.assert_allclose(embed(loaded, ids), embed(loaded, "hello"), atol=1e-6)


@pytest.mark.parametrize(
    ("bad", "param"), [((), "input"), ("", "input"), ((999,), "input"), ((-1,), "input"), ("x" * 5000, "input")]
)
def test_a_bad_input_names_its_parameter(model: Callable[..., Loaded], bad: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        start_embedding(model("embedding"), EmbeddingRequest(id="e", model="m", inputs=("ok", bad)))
    assert caught.value.param == param
    assert "input[1]" in caught.value.message


def test_many_long_inputs_are_tokenised_in_steps(model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what runs beside them does not wait for all of it."""
    texts = tuple(words(30, i) for i in range(10))
    at_once = embed(model("embedding"), *texts)
    monkeypatch.setattr("engine.worker.families.embedding._STEP_CHARACTERS", 100)
    job, steps = start_embedding(model("embedding"), EmbeddingRequest(id="a", model="m", inputs=texts)), 1
    while (result := job.step()) is None:
        steps += 1
    assert steps > 2
    np.testing.assert_array_equal(np.frombuffer(result.vectors, "<f4").reshape(at_once.shape), at_once)


def test_an_input_that_is_far_too_long_is_refused_from_its_beginning(model: Callable[..., Loaded]) -> None:
    begun = time.process_time()
    with pytest.raises(ContextTooLong, match="4096"):
        start_embedding(model("embedding"), EmbeddingRequest(id="a", model="m", inputs=("word " * 2_000_000,)))
    assert time.process_time() - begun < 2


def test_a_batch_job_does_not_starve_behind_a_stream_of_urgent_ones(
    model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    shift, monotonic = 0.0, time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + shift)
    driver = Driver(model("embedding"))
    driver.post(EmbeddingRequest(id="old", model="m", inputs=tuple("abc" * 32), priority="batch"))
    for i in range(30):
        driver.post(EmbeddingRequest(id=f"i{i}", model="m", inputs=("x",), priority="interactive"))
        driver.tick()
        shift = AGEING_SECONDS["batch"] if i > 10 else 0.0
    assert driver.of("old", Embedded)
    over = [result.id for result in driver.recorder.sent]
    assert over.index("old") == over.index("i15") - 1, "three steps of it, one after each of the others"


def test_a_tenant_with_many_jobs_holds_up_no_other(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("embedding"))
    for i in range(9):
        driver.post(EmbeddingRequest(id=f"many{i}", model="m", inputs=("x",), tenant="a"))
    driver.post(EmbeddingRequest(id="one", model="m", inputs=("x",), tenant="b"))
    driver.drain()
    assert [result.id for result in driver.recorder.sent].index("one") == 1


def test_a_job_that_is_late_fails_once(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("embedding"))
    driver.post(EmbeddingRequest(id="e", model="m", inputs=("a",), deadline=time.monotonic()))
    driver.drain()
    (failed,) = driver.recorder.sent
    assert failed.code == "deadline_exceeded"


def test_too_many_dimensions_are_refused(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("embedding"))
    driver.post(EmbeddingRequest(id="e", model="m", inputs=("a",), dimensions=65))
    driver.drain()
    (failed,) = driver.of("e", Failed)
    assert failed.param == "dimensions"


def test_the_embedded_model_finds_paraphrases_across_languages() -> None:
    loaded = load(models.EMBEDDED / "duet-tiny-embed", "embedding")
    queries = ("谁负责部署数据库？", "the server is too slow, we must upgrade the server.", "客户不同意删除日志。")
    answers = (
        "who is responsible to deploy the database?",
        "服务器太慢了，需要升级。",
        "the customer does not agree to delete the log.",
    )
    scores = embed(loaded, *queries) @ embed(loaded, *answers).T
    assert scores.argmax(axis=1).tolist() == [0, 1, 2]
