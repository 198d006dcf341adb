"""Weights in the order the CPU reads them give the same products, and take no more memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx import nn
from mlx_vlm.models.cache import make_prompt_cache
from mlx_vlm.utils import load as load_as_the_library_does

from engine.worker.runtime.layout import lay_out
from engine.worker.runtime.loader import load
from tests import checkpoints

on_cpu = pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="MLX computes on a GPU here")


def is_by_input(weight: Any) -> bool:
    first, second = memoryview(weight).strides  # type: ignore[misc]
    return bool(first < second)


def logits(model: Any, lengths: tuple[int, ...]) -> list[Any]:
    cache, found, start = make_prompt_cache(model), [], 3
    for length in lengths:
        ids = mx.array([[(7 * i) % 90 + 5 for i in range(start, start + length)]])
        found.append(model(ids, cache=cache).logits)
        start += length
    return found


@on_cpu
@pytest.mark.parametrize("kind", checkpoints.KINDS)
def test_every_logit_is_the_same(checkpoint: Callable[..., Path], kind: str) -> None:
    plain, _ = load_as_the_library_does(str(checkpoint(kind)))
    laid_out = load(checkpoint(kind), "chat").model
    pairs = zip(*(logits(model.language_model, (70, 1, 1, 9)) for model in (plain, laid_out)), strict=True)
    assert all(mx.array_equal(left, right) for left, right in pairs)
    linear = [
        layer for _, layer in laid_out.named_modules() if type(layer) is nn.Linear and min(layer.weight.shape) > 1
    ]
    assert linear
    assert all(is_by_input(layer.weight) for layer in linear)


@on_cpu
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_other_types_lie_as_they_did(dtype: Any) -> None:
    layer = nn.Linear(32, 48, bias=False)
    layer.set_dtype(dtype)
    weight = layer.weight
    lay_out(nn.Sequential(layer), generates=True)
    assert layer.weight is weight


@on_cpu
def test_with_a_bias_products_are_the_same_to_rounding() -> None:
    layer, rows = nn.Linear(32, 48), mx.random.normal((9, 32))
    before = layer(rows)
    mx.eval(before)
    lay_out(nn.Sequential(layer), generates=True)
    assert is_by_input(layer.weight)
    assert mx.allclose(layer(rows), before, rtol=1e-5, atol=1e-5)


@on_cpu
@pytest.mark.parametrize(("outputs", "generates", "laid"), [(64, True, True), (96, True, False), (64, False, False)])
def test_an_embedding_is_laid_out_where_it_is_the_output_layer_too(outputs: int, generates: bool, laid: bool) -> None:
    embedding = nn.Embedding(96, 32)
    ids, rows = mx.array([[3, 95, 0]]), mx.random.normal((5, 32))
    before = embedding(ids), embedding.as_linear(rows)
    lay_out(nn.Sequential(embedding, nn.Linear(32, outputs)), generates=generates)
    mx.eval(embedding.weight)
    assert is_by_input(embedding.weight) == laid
    assert all(mx.array_equal(*pair) for pair in zip(before, (embedding(ids), embedding.as_linear(rows)), strict=True))


@on_cpu
def test_a_matrix_that_two_layers_share_stays_one() -> None:
    embedding, head = nn.Embedding(96, 32), nn.Linear(32, 96, bias=False)
    head.weight = embedding.weight
    lay_out(nn.Sequential(embedding, head), generates=True)
    assert head.weight is embedding.weight
    assert is_by_input(head.weight)
