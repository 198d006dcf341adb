"""From logits to tokens: the sampling parameters of all rows as columns, each row picking in its own way.

A row's draw depends on its logits, its seed and the number of its token, never on its neighbours. Filters are exact over
the whole vocabulary: each is a threshold on the scores, read off the best candidates where these are enough and found by
bisection over all scores where they are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx

from engine.types import SamplingParams

CANDIDATES = 1024
"""Best tokens that the filters look at first: sorting a whole vocabulary of 152k costs ten times more."""
_COLDEST = 1e-6
"""Below this temperature scores overflow; at it, a draw is already the best token."""
_BISECTIONS = 30
"""Halvings of the score range [best - 60, best]: 6e-8 of width, below float32's own step there."""
_RANGE = 60.0
"""e^-60 of the best token's probability: nothing below it is ever drawn."""


class Columns:
    """Sampling of B rows at once. Built anew whenever rows join or leave. A seed's 64 bits are folded into 32."""

    def __init__(self, rows: Sequence[SamplingParams], seeds: Sequence[int]) -> None:
        hot = [row for row in rows if row.temperature > 0]
        self._any_hot = bool(hot)
        self._any_min_p = any(row.min_p for row in hot)
        self._any_top_p = any(row.top_p < 1 for row in hot)
        self._largest_top_k = max((row.top_k for row in hot), default=0)
        # A nucleus within a small top-k cannot leave the candidates.
        wide = [row.temperature > 0 and row.top_p < 1 and not 0 < row.top_k <= CANDIDATES for row in rows]
        self._any_wide, self._wide = any(wide), mx.array([[flag] for flag in wide])
        self._seeds = [(seed ^ seed >> 32) & 0xFFFFFFFF for seed in seeds]
        self._hot = mx.array([row.temperature > 0 for row in rows])
        self._temperature = mx.array([[max(row.temperature, _COLDEST) if row.temperature else 1.0] for row in rows])
        self._top_k = mx.array([[row.top_k] for row in rows], dtype=mx.int32)
        self._top_p = mx.array([[row.top_p] for row in rows])
        self._min_p = mx.array([[row.min_p] for row in rows])

    def sample(self, logits: Any, token_numbers: Sequence[int]) -> Any:
        """Tokens int32 [B] from logits [B, V]; row i draws its token number `token_numbers[i]`."""
        best = mx.argmax(logits, axis=-1).astype(mx.int32)
        if not self._any_hot:
            return best
        scores = self.filtered(logits)
        # Gumbel-max: argmax(score + Gumbel noise) is a draw from softmax(score). A key is just two words.
        keys = mx.array(list(zip(self._seeds, token_numbers, strict=True)), dtype=mx.uint32)
        noise = mx.vmap(lambda key: mx.random.gumbel((scores.shape[-1],), key=key))(keys)
        drawn = mx.argmax(scores + noise, axis=-1).astype(mx.int32)
        return mx.where(self._hot, drawn, best)

    def filtered(self, logits: Any) -> Any:
        """Scores float32 [B, V]: logits over temperature, minus infinity where top-k, then top-p of what is left, then min-p
        let a token not through. Ties with the last one stay in."""
        scores = logits.astype(mx.float32) / self._temperature
        if not (self._any_min_p or self._any_top_p or self._largest_top_k):
            return scores
        top = mx.max(scores, axis=-1, keepdims=True)
        threshold = mx.full(top.shape, -float("inf"))
        if self._any_top_p or self._largest_top_k:
            count = min(CANDIDATES, scores.shape[-1])
            candidates = -mx.sort(mx.partition(-scores, count - 1, axis=-1)[:, :count], axis=-1)
            if self._largest_top_k:
                threshold = self._kth(scores, top, candidates)
            if self._any_top_p:
                nucleus = self._nucleus(scores, top, candidates, threshold)
                threshold = mx.where(self._top_p < 1, mx.maximum(threshold, nucleus), threshold)
        if self._any_min_p:
            likely = mx.where(self._min_p > 0, top + mx.log(mx.maximum(self._min_p, 1e-30)), threshold)
            threshold = mx.maximum(threshold, likely)
        return mx.where(scores >= threshold, scores, -float("inf"))

    def _kth(self, scores: Any, top: Any, candidates: Any) -> Any:
        """The score [B, 1] of each row's top_k-th best token; minus infinity where top-k is off."""
        count = candidates.shape[-1]
        kth = mx.take_along_axis(candidates, mx.clip(self._top_k - 1, 0, count - 1), axis=-1)
        if self._largest_top_k > count:
            searched = _bisect(scores >= top - _RANGE, scores, top, self._top_k.astype(mx.float32))
            kth = mx.where(self._top_k > count, searched, kth)
        return mx.where(self._top_k > 0, kth, -float("inf"))

    def _nucleus(self, scores: Any, top: Any, candidates: Any, threshold: Any) -> Any:
        """The score [B, 1] of the last token of the smallest set of best tokens, of those at or above `threshold`, whose
        probability reaches top_p."""
        weights = mx.where(scores >= threshold, mx.exp(scores - top), 0.0)
        wanted = self._top_p * mx.sum(weights, axis=-1, keepdims=True)
        best = mx.where(candidates >= threshold, mx.exp(candidates - top), 0.0)
        reached = mx.cumsum(best, axis=-1)
        # Tokens before which less than the wanted weight lies: at least the best one.
        size = mx.sum((reached - best < wanted) & (best > 0), axis=-1, keepdims=True)
        last = mx.take_along_axis(candidates, mx.maximum(size - 1, 0), axis=-1)
        beyond = (reached[:, -1:] < wanted) & self._wide
        # Only such a row is searched for, and only then is the device waited for: a row's answer is its own.
        if self._any_wide and mx.any(beyond).item():
            return mx.where(beyond, _bisect(weights, scores, top, wanted), last)
        return last


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
    prompt and answer. Everything is a dense column over the vocabulary, so that a token costs the same at any length.
    """

    def __init__(self, params: SamplingParams, prompt: Iterable[int]) -> None:
        self._params = params
        self._prompt = sorted(set(prompt)) if params.repetition_penalty != 1 else []
        self._unbooked: list[int] = []
        self._counts: Any = None
        self._seen: Any = None
        self._bias: Any = None

    @classmethod
    def of(cls, params: SamplingParams, prompt: Iterable[int]) -> Penalties | None:
        wanted = params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
        return cls(params, prompt) if wanted or params.logit_bias else None

    def observe(self, token: int) -> None:
        """A token of the answer became known."""
        self._unbooked.append(token)

    def apply(self, logits: Any) -> Any:
        """Logits [1, V] with this row's penalties and bias, in float32."""
        if self._counts is None:
            self._start(logits.shape[-1])
        for token in self._unbooked:
            self._counts[token] += 1
            self._seen[token] = True
        self._unbooked.clear()
        params, logits = self._params, logits.astype(mx.float32)
        if params.repetition_penalty != 1:
            factor = params.repetition_penalty
            logits = mx.where(self._seen, mx.where(logits > 0, logits / factor, logits * factor), logits)
        if params.presence_penalty or params.frequency_penalty:
            presence = params.presence_penalty * (self._counts > 0)
            logits = logits - presence - params.frequency_penalty * self._counts
        return logits if self._bias is None else logits + self._bias

    def _start(self, vocabulary: int) -> None:
        self._counts = mx.zeros((vocabulary,))
        self._seen = mx.zeros((vocabulary,), dtype=mx.bool_)
        if self._prompt:
            self._seen[mx.array(self._prompt)] = True
        if self._params.logit_bias:
            self._bias = mx.zeros((vocabulary,))
            self._bias[mx.array(list(self._params.logit_bias))] = mx.array(list(self._params.logit_bias.values()))


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
