"""Which tokens the filters let through, exactly, also where they reach beyond the candidates."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from engine.types import SamplingParams
from engine.worker.runtime.sampling import CANDIDATES, Columns

VOCABULARY = 6 * CANDIDATES


def reference(logits: np.ndarray, params: SamplingParams) -> set[int]:
    """Sorted in float64: top-k, then top-p of what is left, then min-p."""
    scores = logits.astype(np.float64) / params.temperature
    order = np.argsort(-scores, kind="stable")
    weights = np.exp(scores - scores.max())
    kept = order[: params.top_k] if params.top_k else order
    share = weights[kept] / weights[kept].sum()
    if params.top_p < 1:
        kept = kept[np.cumsum(share) - share < params.top_p]
    return {int(i) for i in kept if weights[i] >= params.min_p}


def kept(logits: np.ndarray, rows: list[SamplingParams]) -> list[set[int]]:
    batch = mx.broadcast_to(mx.array(logits.astype(np.float32))[None], (len(rows), len(logits)))
    scores = np.array(Columns(rows, [0] * len(rows)).filtered(batch))
    return [{int(i) for i in np.flatnonzero(np.isfinite(row))} for row in scores]


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
def test_filters_keep_exactly_what_sorting_keeps_alone_and_beside_other_rows(spread: float) -> None:
    logits = np.random.default_rng(5).normal(size=VOCABULARY) * spread
    expected = [reference(logits, row) for row in ROWS]
    together = kept(logits, ROWS)
    for row, want, found in zip(ROWS, expected, together, strict=True):
        # Sums of thousands of float32 weights may place a nucleus' border one token away.
        slack = 2 if row.top_p < 1 and len(want) > 100 else 0
        assert len(found ^ want) <= slack, row
        assert kept(logits, [row])[0] == found, row
    assert max(len(want) for want in expected) == VOCABULARY


def test_a_flat_nucleus_wider_than_the_candidates_is_not_cut() -> None:
    """Equal weights: the tokens of a nucleus of 0.75 are three quarters of the vocabulary, six times the candidates."""
    logits = np.linspace(0.0, 1e-3, VOCABULARY)
    (found,) = kept(logits, [SamplingParams(temperature=1.0, top_p=0.75)])
    assert abs(len(found) - 0.75 * VOCABULARY) < 10


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
