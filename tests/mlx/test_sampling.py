"""Sampling against plain NumPy: filters keep exactly the tokens they should, penalties follow their formulas."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types import SamplingParams
from engine.worker.runtime.sampling import Columns, Penalties, top_logprobs

VOCABULARY = 200
ROUNDING = 1e-5
"""The device sums in float32: for tokens this close to a filter's border either answer may be right."""


def survivors(logits: np.ndarray, params: SamplingParams) -> set[int]:
    """Tokens that top-k, then top-p of the remaining tokens, then min-p let through, by sorting."""
    scores = logits.astype(np.float64) / params.temperature
    order = np.argsort(-scores, kind="stable")
    probabilities = np.exp(scores - scores.max())
    kept = order[: params.top_k] if params.top_k else order
    share = probabilities[kept] / probabilities[kept].sum()
    before = np.cumsum(share) - share
    kept = kept[before < params.top_p + ROUNDING] if params.top_p < 1 else kept
    return {int(i) for i in kept if probabilities[i] >= params.min_p * probabilities.max() * (1 - ROUNDING)}


def drawn(logits: np.ndarray, params: SamplingParams, count: int) -> list[int]:
    columns = Columns([params] * count, list(range(count)))
    batch = mx.broadcast_to(mx.array(logits.astype(np.float32))[None], (count, len(logits)))
    return columns.sample(batch, [0] * count).tolist()


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 60]),
    top_p=st.sampled_from([0.1, 0.6, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.4]),
)
def test_only_tokens_that_pass_every_filter_are_drawn(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = np.random.default_rng(seed).normal(size=VOCABULARY) * 2
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert set(drawn(logits, params, 200)) <= survivors(logits, params)


def test_every_survivor_can_be_drawn_and_as_often_as_it_should() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03]))
    counts = np.bincount(drawn(logits, SamplingParams(temperature=1.0, top_p=0.9), 4000), minlength=5)
    expected = np.array([0.5, 0.25, 0.15, 0, 0]) / 0.9
    np.testing.assert_allclose(counts / 4000, expected, atol=0.03)


def test_temperature_zero_is_the_best_token_whatever_the_filters() -> None:
    logits = np.random.default_rng(1).normal(size=VOCABULARY)
    assert set(drawn(logits, SamplingParams(temperature=0.0, top_p=0.5), 5)) == {int(logits.argmax())}


def test_a_top_k_beyond_the_vocabulary_lets_everything_through() -> None:
    logits = np.zeros(VOCABULARY)
    assert len(set(drawn(logits, SamplingParams(temperature=1.0, top_k=1 << 40), 400))) > VOCABULARY / 2


def test_a_draw_depends_on_seed_and_token_number_alone() -> None:
    logits = mx.array(np.random.default_rng(2).normal(size=(3, VOCABULARY)).astype(np.float32))
    params = [SamplingParams(temperature=t) for t in (1.5, 0.0, 0.7)]
    together = Columns(params, [7, 8, 9]).sample(logits, [4, 0, 2]).tolist()
    assert together[0] == Columns(params[:1], [7]).sample(logits[:1], [4]).item()
    assert together[2] == Columns(params[2:], [9]).sample(logits[2:], [2]).item()


def test_penalties_and_bias_follow_their_formulas() -> None:
    params = SamplingParams(
        repetition_penalty=1.3, presence_penalty=0.7, frequency_penalty=0.4, logit_bias={3: 5.0, 9: -100.0}
    )
    penalties = Penalties.of(params, [1, 2, 2])
    assert penalties is not None
    for token in (5, 5, 2):
        penalties.observe(token)
    logits = np.random.default_rng(3).normal(size=12).astype(np.float32)
    expected = logits.copy()
    for token in (1, 2, 5):
        expected[token] = expected[token] / 1.3 if expected[token] > 0 else expected[token] * 1.3
    expected[5] -= 0.7 + 2 * 0.4
    expected[2] -= 0.7 + 0.4
    expected[3] += 5
    expected[9] -= 100
    np.testing.assert_allclose(np.array(penalties.apply(mx.array(logits[None])))[0], expected, rtol=1e-5)


def test_a_row_without_penalties_has_none() -> None:
    assert Penalties.of(SamplingParams(temperature=0.7, top_p=0.9), [1, 2]) is None


@pytest.mark.parametrize("count", [0, 1, 5])
def test_top_logprobs_are_sorted_and_normalised(count: int) -> None:
    logits = np.random.default_rng(4).normal(size=(2, 30)).astype(np.float32)
    chosen, ids, values = top_logprobs(mx.array(logits), mx.array([3, 4]), count)
    reference = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(np.array(chosen), reference[[0, 1], [3, 4]], rtol=1e-5)
    if count:
        assert np.array(ids).tolist() == np.argsort(-reference, axis=1)[:, :count].tolist()
        np.testing.assert_allclose(np.array(values), -np.sort(-reference, axis=1)[:, :count], rtol=1e-4)
