"""From logits to tokens: the sampling parameters of all rows as columns, each row picking in its own way.

A row's draw depends on its logits, its seed and the number of its token, never on its neighbours. Filters are exact over the
whole vocabulary. Only a small top-k is sorted; a nucleus (top-p, arXiv:1904.09751) is drawn from by rejection. A token drawn from
the whole distribution belongs to the nucleus if all likelier tokens together weigh less than top_p. If it does, it is also a draw
from the nucleus. At least top_p of all draws do, so one pass over the vocabulary is nearly always enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx

from engine.types import SamplingParams

CANDIDATES = 1024
"""A top-k of at most this many tokens is sorted out first, and everything else happens among these tokens."""
BLOCK = 256
"""Tokens of a block: a draw picks the block first, then the token in it, so that float32 sums stay short."""
TRIES = 16
"""After this many draws the border of a nucleus is searched for instead."""
_LARGEST_TOP_K = (1 << 31) - 1
_COLDEST = 1e-6
"""Scores overflow below this temperature. At it, a draw is already the best token."""
_BISECTIONS = 30
"""Halvings of the score range [best - 60, best]: its width is then 6e-8, less than a step of float32 there."""
_RANGE = 60.0
"""Tokens below e^-60 of the best token's probability are never drawn."""


class Columns:
    """Samples B rows at once. It is built anew when rows join or leave. The 64 bits of a seed are folded into 32."""

    def __init__(self, rows: Sequence[SamplingParams], seeds: Sequence[int]) -> None:
        narrow = [row.temperature > 0 and 0 < row.top_k <= CANDIDATES for row in rows]
        wide = [row for row, few in zip(rows, narrow, strict=True) if row.temperature > 0 and not few]
        self._any_narrow, self._any_wide = any(narrow), bool(wide)
        self._any_greedy = not all(row.temperature > 0 for row in rows)
        self._any_top_p = any(row.top_p < 1 for row in wide)
        self._any_top_k = any(row.top_k for row in wide)
        self._any_min_p = any(row.min_p for row in wide)
        self._seeds = [(seed ^ seed >> 32) & 0xFFFFFFFF for seed in seeds]
        self._hot = mx.array([row.temperature > 0 for row in rows])
        self._narrow = mx.array(narrow)
        self._temperature = mx.array([[max(row.temperature, _COLDEST) if row.temperature else 1.0] for row in rows])
        self._top_k = mx.array([[min(row.top_k, _LARGEST_TOP_K)] for row in rows], dtype=mx.int32)
        self._top_p = mx.array([[row.top_p] for row in rows])
        self._min_p = mx.array([[row.min_p] for row in rows])
        # A row that draws in another way, or from the whole distribution, is content with its first draw.
        self._content = mx.array(
            [[not row.temperature or row.top_p >= 1 or few] for row, few in zip(rows, narrow, strict=True)]
        )

    def sample(self, logits: Any, token_numbers: Sequence[int]) -> Any:
        """Tokens int32 [B] from logits [B, V]; row i draws its token number `token_numbers[i]`."""
        if not (self._any_narrow or self._any_wide):
            return mx.argmax(logits, axis=-1).astype(mx.int32)
        scores = logits.astype(mx.float32) / self._temperature
        # A key of MLX is two words.
        keys = mx.array(list(zip(self._seeds, token_numbers, strict=True)), dtype=mx.uint32)
        if not self._any_wide:
            drawn = self._among_few(scores, keys)
        elif not self._any_narrow:
            drawn = self._among_all(scores, keys)
        else:
            drawn = mx.where(self._narrow, self._among_few(scores, keys), self._among_all(scores, keys))
        if not self._any_greedy:
            return drawn
        return mx.where(self._hot, drawn, mx.argmax(logits, axis=-1).astype(mx.int32))

    def _among_few(self, scores: Any, keys: Any) -> Any:
        """Tokens int32 [B] of rows with a small top-k: top-k, then top-p of the remaining tokens, then min-p, then the draw."""
        count = min(CANDIDATES, scores.shape[-1])
        ids = mx.argpartition(-scores, count - 1, axis=-1)[:, :count]
        values = mx.take_along_axis(scores, ids, axis=-1)
        order = mx.argsort(-values, axis=-1)
        values, ids = mx.take_along_axis(values, order, axis=-1), mx.take_along_axis(ids, order, axis=-1)
        weights = mx.exp(values - values[:, :1])
        weights = mx.where(mx.arange(count) < self._top_k, weights, 0.0)
        before = mx.cumsum(weights, axis=-1) - weights
        inside = (before < self._top_p * mx.sum(weights, axis=-1, keepdims=True)) | (self._top_p >= 1)
        weights = mx.where(inside & (weights >= self._min_p), weights, 0.0)
        # Gumbel-max: the best of log-weight + Gumbel noise is a draw. Every row gets the same amount of noise: otherwise its draw
        # would depend on its neighbours.
        noise = mx.vmap(lambda key: mx.random.gumbel((count,), key=key))(keys)
        drawn = mx.argmax(mx.where(weights > 0, values + noise, -float("inf")), axis=-1, keepdims=True)
        return mx.take_along_axis(ids, drawn, axis=-1)[:, 0].astype(mx.int32)

    def _among_all(self, scores: Any, keys: Any) -> Any:
        """Tokens int32 [B] of rows that may draw any token of the vocabulary, or any of a large top-k."""
        top = mx.max(scores, axis=-1, keepdims=True)
        weights = mx.exp(scores - top)
        if self._any_top_k:
            kth = _bisect(scores >= top - _RANGE, scores, top, self._top_k.astype(mx.float32))
            weights = mx.where((self._top_k == 0) | (scores >= kth), weights, 0.0)
        likely = mx.where(weights >= self._min_p, weights, 0.0) if self._any_min_p else weights
        draws = _Draws(likely, mx.vmap(lambda key: mx.random.uniform(shape=(TRIES + 1, 2), key=key))(keys))
        if not self._any_top_p:
            return draws.token(0)[:, 0]
        everything = draws if likely is weights else _Draws(weights, draws.uniform)
        wanted = self._top_p * mx.sum(everything.block_weights, axis=-1, keepdims=True)
        token, content = draws.token(0), self._content
        for number in range(1, TRIES + 1):
            above = mx.sum(
                mx.where(scores > mx.take_along_axis(scores, token, axis=-1), weights, 0.0), axis=-1, keepdims=True
            )
            content = content | (above < wanted)
            # This waits for the device: what a row draws next depends on it.
            if mx.all(content).item():
                return token[:, 0]
            token = mx.where(content, token, draws.token(number))
        border = _bisect(weights, scores, top, wanted)
        inside = _Draws(mx.where(scores >= border, likely, 0.0), draws.uniform)
        return mx.where(content, token, inside.token(TRIES))[:, 0]


class _Draws:
    """Draws in proportion to weights [B, V], by inverting their running sums.

    `token(i)` int32 [B, 1] uses the two numbers [B, i, 2] of `uniform`: the first for the block, the second for the token in it.
    """

    def __init__(self, weights: Any, uniform: Any) -> None:
        self.uniform = uniform
        rows, vocabulary = weights.shape
        if missing := -vocabulary % BLOCK:
            weights = mx.concatenate([weights, mx.zeros((rows, missing))], axis=-1)
        self._blocks = weights.reshape(rows, -1, BLOCK)
        self.block_weights = mx.sum(self._blocks, axis=-1)

    def token(self, number: int) -> Any:
        place = _invert(self.block_weights, self.uniform[:, number, :1])
        block = mx.take_along_axis(self._blocks, place[..., None], axis=1)[:, 0]
        return (place * BLOCK + _invert(block, self.uniform[:, number, 1:])).astype(mx.int32)


def _invert(weights: Any, share: Any) -> Any:
    """The place where running sums of `weights` [B, N] pass the `share` [B, 1] (0 <= share < 1) of the last sum.

    It never has weight 0, though sums of a parallel scan need not be monotone to the last bit.
    """
    sums = mx.cumsum(weights, axis=-1)
    passed = mx.minimum(share, 1 - 2.0**-23) * sums[:, -1:]
    return mx.argmax((sums > passed) & (weights > 0), axis=-1, keepdims=True).astype(mx.int32)


def _bisect(weights: Any, scores: Any, top: Any, wanted: Any) -> Any:
    """The highest threshold [B, 1] whose survivors weigh at least `wanted`; minus infinity if all tokens together weigh less."""
    weights = weights.astype(mx.float32)
    low, high = top - _RANGE, top
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = mx.sum(mx.where(scores >= middle, weights, 0.0), axis=-1, keepdims=True) >= wanted
        low, high = mx.where(enough, middle, low), mx.where(enough, high, middle)
    # If the survivors of `high` alone weigh enough, it is the threshold (a best token above top_p, or top_k 1).
    alone = mx.sum(mx.where(scores >= high, weights, 0.0), axis=-1, keepdims=True) >= wanted
    none = mx.sum(weights, axis=-1, keepdims=True) < wanted
    return mx.where(none, -float("inf"), mx.where(alone, high, low))


class Penalties:
    """One row's penalties and bias, and the tokens they depend on. `of` returns None for a row that asks for none.

    Presence and frequency are OpenAI's, over generated tokens. Repetition is that of CTRL (arXiv:1909.05858), over prompt and
    answer. Everything is a dense column over the vocabulary, so a token costs the same at any length.
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
    """Natural log-probabilities of the model's own distribution: those of `tokens` [B], and the `count` best as ids and values
    [B, count], best first. Logits [B, V] are the ones before temperature, penalties and filters."""
    logits = logits.astype(mx.float32)
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
    if count == 0:
        return chosen, None, None
    ids = mx.argpartition(-logprobs, count - 1, axis=-1)[:, :count]
    values = mx.take_along_axis(logprobs, ids, axis=-1)
    order = mx.argsort(-values, axis=-1)
    return chosen, mx.take_along_axis(ids, order, axis=-1), mx.take_along_axis(values, order, axis=-1)
