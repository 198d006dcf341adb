"""Which tokens the filters let through, exactly, also where they reach beyond the candidates."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from engine.types import SamplingParams
from engine.worker.runtime.sampling import CANDIDATES, Columns

VOCABULARY = 6 * CANDIDATES - 7
DRAWS, PARTS = 2048, 8


def reference(logits: np.ndarray, params: SamplingParams) -> set[int]:
    """Sorted in float64: top-k, then top-p of the remaining tokens, then min-p."""
    scores = logits.astype(np.float64) / params.temperature
    order = np.argsort(-scores, kind="stable")
    weights = np.exp(scores - scores.max())
    kept = order[: params.top_k] if params.top_k else order
    share = weights[kept] / weights[kept].sum()
    if params.top_p < 1:
        kept = kept[np.cumsum(share) - share < params.top_p]
    return {int(i) for i in kept if weights[i] >= params.min_p}


def drawn(logits: np.ndarray, params: SamplingParams, count: int) -> np.ndarray:
    """The tokens of seeds 0 to `count`."""
    found = []
    for first in range(0, count, 256):
        seeds = range(first, min(first + 256, count))
        batch = mx.broadcast_to(mx.array(logits.astype(np.float32))[None], (len(seeds), len(logits)))
        found += Columns([params] * len(seeds), seeds).sample(batch, [0] * len(seeds)).tolist()
    return np.array(found)


ROWS = [
    SamplingParams(temperature=0.7, top_k=20, top_p=0.8),
    SamplingParams(temperature=1.0, top_p=0.9),
    SamplingParams(temperature=1.0, top_k=CANDIDATES),
    SamplingParams(temperature=1.0, top_k=3 * CANDIDATES),
    SamplingParams(temperature=1.3, top_k=3 * CANDIDATES, top_p=0.5),
    SamplingParams(temperature=1.0, min_p=0.02),
    SamplingParams(temperature=1.0, top_k=50, top_p=0.9, min_p=0.2),
    SamplingParams(temperature=2.0),
    SamplingParams(temperature=1.0, top_k=1),
]


@pytest.mark.parametrize("spread", [0.3, 2.0, 6.0], ids=["flat", "usual", "peaked"])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_what_is_drawn_is_what_sorting_keeps_and_as_often_as_it_weighs(row: SamplingParams, spread: float) -> None:
    logits = np.random.default_rng(5).normal(size=VOCABULARY) * spread
    allowed = reference(logits, row)
    found = drawn(logits, row, DRAWS)
    # Sums of thousands of float32 weights may place a nucleus' border one token away.
    assert len(set(found.tolist()) - allowed) <= (1 if row.top_p < 1 and len(allowed) > 100 else 0)
    scores = np.where(np.isin(np.arange(VOCABULARY), list(allowed)), logits / row.temperature, -np.inf)
    weights = np.exp(scores - scores.max())
    order = np.argsort(-scores, kind="stable")
    share = np.cumsum(weights[order]) / weights.sum()
    part = np.empty(VOCABULARY, dtype=int)
    part[order] = np.minimum((share - weights[order] / weights.sum() / 2) * PARTS, PARTS - 1).astype(int)
    expected = np.bincount(part, weights / weights.sum() * DRAWS, minlength=PARTS)
    counts = np.bincount(part[found], minlength=PARTS)
    # Five standard deviations of a binomial, for tokens of similar weight taken together.
    assert np.all(np.abs(counts - expected) <= 5 * np.sqrt(expected * (1 - expected / DRAWS)) + 1), (counts, expected)


def test_a_row_draws_the_same_alone_and_beside_others() -> None:
    logits = np.random.default_rng(6).normal(size=VOCABULARY)
    seeds = list(range(len(ROWS)))
    batch = mx.broadcast_to(mx.array(logits.astype(np.float32))[None], (len(ROWS), VOCABULARY))
    for number in range(20):
        together = Columns(ROWS, seeds).sample(batch, [number] * len(ROWS)).tolist()
        assert together == [Columns([row], [i]).sample(batch[:1], [number]).item() for i, row in enumerate(ROWS)]


@pytest.mark.parametrize("top_p", [0.75, 0.02], ids=["wide", "rejects until its border is searched for"])
def test_a_flat_nucleus_is_not_cut(top_p: float) -> None:
    """Equal weights: the tokens of a nucleus of 0.75 are three quarters of the vocabulary, and all of them are drawn from."""
    logits = np.linspace(0.0, 1e-3, VOCABULARY)
    found = drawn(logits, SamplingParams(temperature=1.0, top_p=top_p), DRAWS)
    lowest = (1 - top_p) * VOCABULARY
    assert found.min() >= lowest - 5
    assert abs(found.mean() - (lowest + VOCABULARY) / 2) < 5 * top_p * VOCABULARY / np.sqrt(12 * DRAWS)
    assert found.min() < lowest + 0.02 * top_p * VOCABULARY
    assert found.max() > VOCABULARY * (1 - 0.02 * top_p)


def test_what_has_no_weight_is_never_drawn() -> None:
    logits = np.full(VOCABULARY, -np.inf)
    logits[[0, 255, 256, VOCABULARY - 1]] = 0.0
    found = drawn(logits, SamplingParams(temperature=1.0), DRAWS)
    assert set(found.tolist()) == {0, 255, 256, VOCABULARY - 1}


def test_extreme_temperatures_give_valid_draws() -> None:
    logits = mx.array(np.random.default_rng(1).normal(size=(2, 300)).astype(np.float32) * 50)
    coldest, hottest = SamplingParams(temperature=1e-30, top_p=0.9), SamplingParams(temperature=1e6, top_p=0.9)
    drawn = Columns([coldest, hottest], [1, 2]).sample(logits, [0, 0]).tolist()
    assert drawn[0] == int(mx.argmax(logits[0]).item())
    assert 0 <= drawn[1] < 300


def test_seeds_that_differ_only_above_32_bits_draw_differently() -> None:
    logits = mx.zeros((1, 5000))
    params = [SamplingParams(temperature=1.0)]
    assert (
        Columns(params, [1]).sample(logits, [0]).item() != Columns(params, [1 + (1 << 40)]).sample(logits, [0]).item()
    )
