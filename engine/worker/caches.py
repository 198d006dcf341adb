"""The libraries' cache classes. No other file of the engine knows them.

A layer's cache is one of two kinds. Plain and quantised KV is addressed by token: it can be cut along the tokens. Everything
else (rotating windows, gated delta nets and other recurrences, pooled or chunked attention) is a state that is valid at one
position only. A layer may be a list of both; its parts are then its leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import mlx.core as mx
from mlx_vlm.models import cache as kinds

Cache = list[Any]
"""One row's layers, as the library's `make_prompt_cache` makes them; or the layers of a batch, as `merge` makes them."""
STEP: Final = kinds.KVCache.step
"""Plain KV grows by this many tokens at a time."""
KV_GROUP: Final = 32
"""Values that share a scale in quantised KV. It divides every head size in use."""

_BY_TOKEN: Final = (kinds.KVCache, kinds.QuantizedKVCache, kinds.ConcatenateKVCache)
_STATES: Final = (
    kinds.RotatingKVCache,
    kinds.BufferedRotatingKVCache,
    kinds.ArraysCache,
    kinds.ChunkedKVCache,
    kinds.PoolingCache,
)


# One row and several ------------------------------------------------------------------------------------------------------


def make(language_model: Any, *, kv_bits: int | None = None) -> Cache:
    """One row's empty layers. With `kv_bits` (4 or 8) plain KV is quantised."""
    layers = list(kinds.make_prompt_cache(language_model))
    if kv_bits is None:
        return layers
    return [kinds.QuantizedKVCache(KV_GROUP, kv_bits) if type(layer) is kinds.KVCache else layer for layer in layers]


def can_batch(cache: Cache) -> bool:
    """Whether rows of this kind can run together. Some kinds (chunked attention, quantised KV) have no batched form."""
    return all(hasattr(layer, "merge") for layer in cache)


def merge(rows: Sequence[Cache]) -> Cache:
    """Single rows as one batch: a copy."""
    return [type(layers[0]).merge(list(layers)) for layers in zip(*rows, strict=True)]


def extend(batch: Cache, rows: Sequence[Cache]) -> None:
    """Append single rows to a batch. None of them may be empty (`has_empty`).

    The libraries' `extend` pads an empty row (a prompt of one token) with float32, and so turns a whole bfloat16 batch into
    float32. `merge` does not.
    """
    for batched, *layers in zip(batch, *rows, strict=True):
        batched.extend(type(layers[0]).merge(layers))


def has_empty(cache: Cache) -> bool:
    return any(layer.empty() for layer in cache)


def extract(batch: Cache, i: int) -> Cache:
    """Row `i` of a batch, as a single row: a copy."""
    return [layer.extract(i) for layer in batch]


def keep(batch: Cache, rows: list[int]) -> None:
    """Drop all rows of a batch but these, which keep their order."""
    index = mx.array(rows, dtype=mx.int32)
    for layer in batch:
        layer.filter(index)


def states(cache: Cache) -> list[Any]:
    """The arrays of all layers, to have them computed."""
    return [layer.state for layer in cache]


def nbytes(cache: Cache) -> int:
    return sum(int(layer.nbytes) for layer in cache)


# Layers in parts --------------------------------------------------------------------------------------------------------


def leaves(cache: Sequence[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every layer with its place in `cache`, such as "3", or "3.0" for the first part of a layer that is a list."""
    for i, layer in enumerate(cache):
        if isinstance(layer, kinds.CacheList):
            yield from leaves(layer.caches, f"{prefix}{i}.")
        else:
            yield f"{prefix}{i}", layer


def is_by_token(layer: Any) -> bool:
    """Whether the layer can be cut along the tokens. Kinds are taken exactly: a subclass may hold more than its parent shows."""
    return type(layer) in _BY_TOKEN


def is_state(layer: Any) -> bool:
    """Whether the layer is a state at one position that can be kept as a whole. Kinds are taken exactly, as above."""
    return type(layer) in _STATES


def parts(layer: Any) -> Iterator[tuple[str, Any]]:
    """The arrays [1, heads, tokens, width] of a layer that is addressed by token, with their names: "k" and "v", or "k0" to
    "v2" when it is quantised."""
    for side, held in (("k", layer.keys), ("v", layer.values)):
        if held is None:
            continue
        if isinstance(held, tuple | list):
            yield from ((f"{side}{i}", part) for i, part in enumerate(held))
        else:
            yield side, held


def fill(layer: Any, part: Callable[[str], Any], tokens: int) -> None:
    """Give an empty layer that is addressed by token its first `tokens` tokens. `part` makes the array of a name; it may have
    room for more tokens at its end."""
    if tokens == 0:
        return
    if type(layer) is kinds.QuantizedKVCache:
        layer.keys, layer.values = (tuple(part(f"{side}{i}") for i in range(3)) for side in "kv")
    else:
        layer.keys, layer.values = part("k"), part("v")
    if type(layer) is kinds.ConcatenateKVCache:
        layer.keys, layer.values = layer.keys[..., :tokens, :], layer.values[..., :tokens, :]
    layer.offset = tokens


def snapshot(layer: Any) -> Any:
    """A state layer as it is now: a tree of arrays and plain values, which `recover` takes back."""
    if type(layer) is kinds.RotatingKVCache and layer.keep == 0 and layer.keys is not None:
        # The buffer also has free room and, after a chunk, tokens that have left the window: only the window is kept.
        window = layer.size()
        keys, values = (layer._temporal_order(side)[..., -window:, :] for side in (layer.keys, layer.values))
        return {"state": (keys, values), "meta_state": tuple(map(str, (0, layer.max_size, layer.offset, window)))}
    return layer.prefix_cache_snapshot()


def recover(layer: Any, tree: Any) -> None:
    """Make an empty state layer what it was when `snapshot` gave `tree`."""
    layer.prefix_cache_restore(tree)
