"""From logits to tokens: the sampling parameters of all rows as columns, each row picking in its own way.

A row's draw depends on its logits, its seed and the number of its token, never on its neighbours. Filters are exact over
the whole vocabulary and need no sort: each is a threshold on the scores, found by bisection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx

from engine.types import SamplingParams

_BISECTIONS = 30
"""Halvings of the score range [best - 60, best]: 6e-8 of width, below float32's own step there."""
_RANGE = 60.0
"""e^-60 of the best token's probability: nothing below it is ever drawn."""


class Columns:
    """Sampling of B rows at once. Built anew whenever rows join or leave. `seeds` are one unsigned 32-bit word a row."""

    def __init__(self, rows: Sequence[SamplingParams], seeds: Sequence[int]) -> None:
        hot = [row.temperature > 0 for row in rows]
        self._any_hot = any(hot)
        self._any_top_k = any(row.temperature > 0 and row.top_k for row in rows)
        self._any_top_p = any(row.temperature > 0 and row.top_p < 1 for row in rows)
        self._any_min_p = any(row.temperature > 0 and row.min_p for row in rows)
        self._seeds = [seed & 0xFFFFFFFF for seed in seeds]
        self._hot = mx.array(hot)
        self._temperature = mx.array([[row.temperature or 1.0] for row in rows])
        self._top_k = mx.array([[float(row.top_k or 2**24)] for row in rows])
        self._top_p = mx.array([[row.top_p] for row in rows])
        self._min_p = mx.array([[row.min_p] for row in rows])

    def sample(self, logits: Any, token_numbers: Sequence[int]) -> Any:
        """Tokens int32 [B] from logits [B, V]; row i draws its token number `token_numbers[i]`."""
        best = mx.argmax(logits, axis=-1).astype(mx.int32)
        if not self._any_hot:
            return best
        scores = logits.astype(mx.float32) / self._temperature
        scores = mx.where(scores >= self._threshold(scores), scores, -float("inf"))
        # Gumbel-max: argmax(score + Gumbel noise) is a draw from softmax(score). A key is just two words.
        keys = mx.array(list(zip(self._seeds, token_numbers, strict=True)), dtype=mx.uint32)
        noise = mx.vmap(lambda key: mx.random.gumbel((scores.shape[-1],), key=key))(keys)
        drawn = mx.argmax(scores + noise, axis=-1).astype(mx.int32)
        return mx.where(self._hot, drawn, best)

    def _threshold(self, scores: Any) -> Any:
        """The lowest score [B, 1] that top-k, then top-p of what is left, then min-p let through. Ties stay in."""
        top = mx.max(scores, axis=-1, keepdims=True)
        threshold = mx.full(top.shape, -float("inf"))
        if self._any_min_p:
            threshold = top + mx.log(mx.maximum(self._min_p, 1e-30))
        if self._any_top_k:
            threshold = mx.maximum(threshold, _bisect(scores >= top - _RANGE, scores, top, self._top_k))
        if self._any_top_p:
            weights = mx.where(scores >= threshold, mx.exp(scores - top), 0.0)
            wanted = self._top_p * mx.sum(weights, axis=-1, keepdims=True)
            within = _bisect(weights, scores, top, wanted)
            # The sum of all weights may round to just below itself: top_p 1 must let everything through.
            threshold = mx.where(self._top_p < 1, mx.maximum(threshold, within), threshold)
        return threshold


def _bisect(weights: Any, scores: Any, top: Any, wanted: Any) -> Any:
    """The highest threshold [B, 1] whose survivors weigh at least `wanted`; below the range if all together do not."""
    weights = weights.astype(mx.float32)
    low, high = top - _RANGE, top
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = mx.sum(mx.where(scores >= middle, weights, 0.0), axis=-1, keepdims=True) >= wanted
        low, high = mx.where(enough, middle, low), mx.where(enough, high, middle)
    # Survivors of `high` would do when they alone weigh enough (the best token above top_p, top_k 1).
    alone = mx.sum(mx.where(scores >= high, weights, 0.0), axis=-1, keepdims=True) >= wanted
    none = mx.sum(weights, axis=-1, keepdims=True) < wanted
    return mx.where(none, -float("inf"), mx.where(alone, high, low))


class Penalties:
    """One row's penalties and bias, and the tokens they depend on. None for a row that asks for none (`of`).

    Presence and frequency as OpenAI defines them, over generated tokens; repetition as in CTRL (arXiv:1909.05858) over
    prompt and answer.
    """

    def __init__(self, params: SamplingParams, prompt: Iterable[int]) -> None:
        self._params = params
        self._generated: Counter[int] = Counter()
        self._seen = dict.fromkeys(prompt) if params.repetition_penalty != 1 else {}
        self._bias_ids = mx.array(list(params.logit_bias), dtype=mx.int32)
        self._bias = mx.array(list(params.logit_bias.values()), dtype=mx.float32)

    @classmethod
    def of(cls, params: SamplingParams, prompt: Iterable[int]) -> Penalties | None:
        wanted = params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
        return cls(params, prompt) if wanted or params.logit_bias else None

    def observe(self, token: int) -> None:
        self._generated[token] += 1
        if self._params.repetition_penalty != 1:
            self._seen[token] = None

    def apply(self, logits: Any) -> Any:
        """Logits [1, V] with this row's penalties and bias."""
        params, logits = self._params, logits.astype(mx.float32)
        if self._seen:
            ids = mx.array(list(self._seen), dtype=mx.int32)
            old = logits[:, ids]
            factor = params.repetition_penalty
            logits = mx.put_along_axis(logits, ids[None], mx.where(old > 0, old / factor, old * factor), axis=-1)
        if self._generated and (params.presence_penalty or params.frequency_penalty):
            ids = mx.array(list(self._generated), dtype=mx.int32)
            counts = mx.array(list(self._generated.values()), dtype=mx.float32)
            lowered = logits[:, ids] - params.presence_penalty - params.frequency_penalty * counts
            logits = mx.put_along_axis(logits, ids[None], lowered, axis=-1)
        if params.logit_bias:
            raised = logits[:, self._bias_ids] + self._bias
            logits = mx.put_along_axis(logits, self._bias_ids[None], raised, axis=-1)
        return logits


def top_logprobs(logits: Any, tokens: Any, count: int) -> tuple[Any, Any, Any]:
    """Natural log-probabilities of the model's own distribution: of `tokens` [B], and the `count` best as ids and values
    [B, count], best first. Logits [B, V] are those before temperature, penalties and filters."""
    logits = logits.astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
    if count == 0:
        return chosen, None, None
    ids = mx.argpartition(-logprobs, count - 1, axis=-1)[:, :count]
    values = mx.take_along_axis(logprobs, ids, axis=-1)
    order = mx.argsort(-values, axis=-1)
    return chosen, mx.take_along_axis(ids, order, axis=-1), mx.take_along_axis(values, order, axis=-1)
