"""Every kind of layer cache comes back as it was: what it answers after a restore is what it would have answered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm.models import cache as kinds

from engine.kvstore import blobs
from engine.worker.kvcache import records
from engine.worker.kvcache.memory_tier import Content

HEADS, WIDTH = 2, 32


class Feed:
    """Deterministic keys and values, and one step of each kind of layer."""

    def __init__(self, dtype: mx.Dtype) -> None:
        self._dtype = dtype

    def kv(self, start: int, count: int) -> tuple[mx.array, mx.array]:
        rng = np.random.default_rng(start)
        made = rng.standard_normal((2, 1, HEADS, count, WIDTH)).astype(np.float32)
        return mx.array(made[0]).astype(self._dtype), mx.array(made[1]).astype(self._dtype)

    def step(self, layer: Any, start: int, count: int) -> list[mx.array]:
        if isinstance(layer, kinds.CacheList):
            return [array for inner in layer.caches for array in self.step(inner, start, count)]
        keys, values = self.kv(start, count)
        if isinstance(layer, kinds.ArraysCache):
            old = layer[0] if layer[0] is not None else mx.zeros((1, HEADS, WIDTH))
            layer[0] = old * 0.5 + keys.astype(mx.float32).sum(axis=2)
            layer[1] = keys[:, :, -1]
            return [layer[0], layer[1]]
        if isinstance(layer, kinds.PoolingCache):
            flat = keys[:, 0]
            found = layer.accumulate_windows(flat, flat, start)
            if found[0].shape[1]:
                layer.update_and_fetch(found[0].mean(axis=-1, keepdims=True))
            return [part for part in layer.state if part is not None]
        found = layer.update_and_fetch(keys, values)
        return [array for side in found for array in (side if isinstance(side, tuple | list) else [side])]


LAYERS: dict[str, Callable[[], Any]] = {
    "plain": kinds.KVCache,
    "concatenating": kinds.ConcatenateKVCache,
    "quantised, 8 bits": lambda: kinds.QuantizedKVCache(32, 8),
    "quantised, 4 bits": lambda: kinds.QuantizedKVCache(32, 4),
    "window": lambda: kinds.RotatingKVCache(48),
    "window that keeps its beginning": lambda: kinds.RotatingKVCache(48, keep=4),
    "window with slack": lambda: kinds.BufferedRotatingKVCache(48, buffer_size=16),
    "chunks": lambda: kinds.ChunkedKVCache(64),
    "recurrence": lambda: kinds.ArraysCache(2),
    "pooled": lambda: kinds.PoolingCache(8),
    "both in one layer": lambda: kinds.CacheList(kinds.KVCache(), kinds.ArraysCache(2)),
    "list of lists": lambda: kinds.CacheList(kinds.CacheList(kinds.RotatingKVCache(48)), kinds.KVCache()),
}


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("tokens", [20, 100, 300])
@pytest.mark.parametrize("read", [(True, True), (True, False), (False, False)], ids=["disk", "both", "memory"])
def test_a_restored_layer_answers_as_the_one_that_was_cut(
    name: str, dtype: mx.Dtype, tokens: int, read: tuple[bool, bool], tmp_path: Path
) -> None:
    feed, make = Feed(dtype), LAYERS[name]
    cache = [make(), kinds.KVCache()]
    for start in range(0, tokens, 20):
        for layer in cache:
            feed.step(layer, start, 20)
    cut = [(0, min(64, tokens)), *([(64, tokens)] if tokens > 64 else [])]
    blocks: list[tuple[Content, int]] = []
    for (start, stop), from_disk in zip(cut, read, strict=False):
        block = records.cut_block(cache, start, stop)
        blocks.append((through_a_file(tmp_path, block, {})[0] if from_disk else block, stop - start))
    tensors, facts = through_a_file(tmp_path, *records.cut_state(cache))
    state = records.as_arrays(tensors), facts
    restored = [make(), kinds.KVCache()]
    records.restore(restored, blocks, state if records.has_state(cache) else None, tokens=tokens, capacity=tokens + 64)
    for start, count in ((tokens, 7), (tokens + 7, 1), (tokens + 8, 1), (tokens + 9, 60)):
        for ours, theirs in zip(restored, cache, strict=True):
            for got, expected in zip(feed.step(ours, start, count), feed.step(theirs, start, count), strict=True):
                assert mx.array_equal(got, expected).item(), (name, start)


def through_a_file(
    folder: Path, arrays: records.Arrays, facts: dict[str, str]
) -> tuple[dict[str, blobs.Tensor], dict[str, str]]:
    path = folder / "part"
    blobs.write(path, records.as_tensors(arrays), facts)
    return blobs.read(path)


@pytest.mark.parametrize("from_disk", [True, False])
def test_part_of_a_block_can_be_restored(from_disk: bool, tmp_path: Path) -> None:
    feed, layer, shorter, restored = Feed(mx.float32), kinds.KVCache(), kinds.KVCache(), kinds.KVCache()
    feed.step(layer, 0, 20)
    feed.step(layer, 20, 20)
    feed.step(shorter, 0, 20)
    block: Content = records.cut_block([layer], 0, 40)
    if from_disk:
        block = through_a_file(tmp_path, dict(block), {})[0]
    records.restore([restored], [(block, 20)], None, tokens=20, capacity=64)
    assert mx.array_equal(feed.step(restored, 5, 3)[0], feed.step(shorter, 5, 3)[0]).item()


def test_a_missing_part_or_state_is_no_cache() -> None:
    feed, layer = Feed(mx.float32), kinds.KVCache()
    feed.step(layer, 0, 20)
    block = records.cut_block([layer], 0, 20)
    with pytest.raises(ValueError, match="missing"):
        records.restore([kinds.KVCache(), kinds.KVCache()], [(block, 20)], None, tokens=20, capacity=20)
    with pytest.raises(ValueError, match="state"):
        records.restore([kinds.KVCache(), kinds.ArraysCache(1)], [(block, 20)], None, tokens=20, capacity=20)


def test_blocks_of_other_shapes_are_no_cache(tmp_path: Path) -> None:
    feed, layer = Feed(mx.float32), kinds.KVCache()
    feed.step(layer, 0, 20)
    read = through_a_file(tmp_path, records.cut_block([layer], 0, 20), {})[0]
    narrow = {name: array[..., :8] for name, array in records.cut_block([layer], 0, 20).items()}
    for wrong in (narrow, {name: array.astype(mx.bfloat16) for name, array in narrow.items()}):
        with pytest.raises(ValueError, match="other shapes"):
            records.restore([kinds.KVCache()], [(read, 20), (wrong, 20)], None, tokens=40, capacity=40)


def test_a_subclass_may_hold_more_and_is_not_kept() -> None:
    class Special(kinds.KVCache):  # type: ignore[misc]
        pass

    with pytest.raises(records.Unsupported, match="Special"):
        records.has_state([Special()])


def test_a_cache_with_other_tokens_is_seen() -> None:
    feed, layer = Feed(mx.float32), kinds.KVCache()
    feed.step(layer, 0, 20)
    assert records.holds([layer], 20)
    assert not records.holds([layer], 19)
