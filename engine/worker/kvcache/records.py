"""One sequence's cache as arrays, and back. On the model's thread.

Layers that are addressed by token (plain and quantised KV) are cut along the tokens into blocks. Every other kind is a state at
one position: a checkpoint holds all of them. `engine.worker.caches` knows which is which.

Blocks that were read from SSD stay the bytes that were read. A row's layers are made of them with one copy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import mlx.core as mx
import numpy as np

from engine.kvstore.blobs import Tensor
from engine.worker import caches
from engine.worker.caches import Cache
from engine.worker.kvcache.memory_tier import Content

Arrays = dict[str, Any]

_DTYPES: Final = {
    mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32", mx.int32: "I32", mx.uint8: "U8", mx.int8: "I8",
    mx.int64: "I64", mx.uint64: "U64", mx.int16: "I16", mx.uint16: "U16", mx.bool_: "BOOL",
}  # fmt: skip
_BY_NAME: Final = {name: dtype for dtype, name in _DTYPES.items()}
_TREE: Final = "state"


class Unsupported(Exception):
    """A cache of this kind cannot be kept. The message names it."""


def has_state(cache: Cache) -> bool:
    """Whether a model has layers that can only be kept as checkpoints. Raises `Unsupported` if a layer cannot be kept at all."""
    layers = [layer for _, layer in caches.leaves(cache)]
    for layer in layers:
        if not caches.is_by_token(layer) and not caches.is_state(layer):
            raise Unsupported(f"its layers include a {type(layer).__name__}")
    return any(map(caches.is_state, layers))


def holds(cache: Cache, tokens: int) -> bool:
    """Whether every layer that is addressed by token holds exactly the sequence's `tokens`: some models keep more there."""
    return all(layer.offset == tokens for _, layer in caches.leaves(cache) if caches.is_by_token(layer))


def cut_block(cache: Cache, start: int, end: int) -> Arrays:
    """Tokens start..end of the layers that are addressed by token, as arrays of their own, not yet evaluated."""
    found: Arrays = {}
    for place, layer in caches.leaves(cache):
        if caches.is_by_token(layer):
            for name, array in caches.parts(layer):
                found[f"{place}.{name}"] = mx.contiguous(array[..., start:end, :])
    return found


def cut_state(cache: Cache) -> tuple[Arrays, dict[str, str]]:
    """The state layers as they are now: arrays of their own, not yet evaluated, and the facts that are needed to restore them."""
    arrays: Arrays = {}
    trees: dict[str, Any] = {}
    for place, layer in caches.leaves(cache):
        if caches.is_state(layer):
            trees[place] = _flatten(caches.snapshot(layer), place, arrays)
    return arrays, {_TREE: json.dumps(trees, separators=(",", ":"))} if trees else {}


def restore(
    fresh: Cache,
    blocks: Sequence[tuple[Content, int]],
    state: tuple[Arrays, Mapping[str, str]] | None,
    *,
    tokens: int,
    capacity: int,
) -> None:
    """Fill a new cache with `tokens` tokens: from each of `blocks` as many as stand beside it, and `state`.

    The layers get room for `capacity` tokens, so that the following ones need no other copy. Raises `ValueError` if a part is
    missing or has another shape.
    """
    trees = json.loads(state[1].get(_TREE, "{}")) if state is not None else {}
    copies: list[_Copy] = []
    for place, layer in caches.leaves(fresh):
        if caches.is_by_token(layer):
            caches.fill(layer, partial(_joined, blocks, place, capacity - tokens, copies), tokens)
        else:
            if state is None or place not in trees:
                raise ValueError(f"the state of layer {place} is missing")
            caches.recover(layer, _unflatten(trees[place], state[0]))
    if not holds(fresh, tokens):
        raise ValueError("the blocks do not add up")
    mx.eval([copy.target for copy in copies])
    for copy in copies:
        copy.make()


def begin(arrays: Content) -> None:
    """Start to compute the arrays without waiting. Until they are computed they keep alive the whole cache they were cut from."""
    mx.async_eval(list(arrays.values()))


def as_tensors(arrays: Content) -> dict[str, Tensor]:
    """Evaluated bytes that another thread may read without calling MLX. They keep their arrays alive."""
    # As bytes, because numpy knows no bfloat16. These are views: nothing is copied.
    flat = {name: array.reshape(-1).view(mx.uint8) for name, array in arrays.items()}
    mx.eval(list(flat.values()))
    return {
        name: Tensor(_DTYPES[arrays[name].dtype], tuple(arrays[name].shape), memoryview(flat[name])) for name in arrays
    }


def as_arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    """The tensors as arrays of MLX, with one copy each."""
    return {
        name: mx.array(np.frombuffer(tensor.data, dtype=np.uint8)).view(_BY_NAME[tensor.dtype]).reshape(tensor.shape)
        for name, tensor in tensors.items()
    }


def _joined(blocks: Sequence[tuple[Content, int]], place: str, room: int, copies: list[_Copy], part: str) -> Any:
    name = f"{place}.{part}"
    try:
        parts = [(block[name], take) for block, take in blocks]
    except KeyError as error:
        raise ValueError(f"{name} is missing") from error
    if any(isinstance(array, Tensor) for array, _ in parts):
        return _Copy.of(parts, room, copies)
    arrays = [array if take == array.shape[-2] else array[..., :take, :] for array, take in parts]
    if room > 0:
        last = arrays[-1]
        arrays.append(mx.zeros((*last.shape[:-2], room, last.shape[-1]), dtype=last.dtype))
    return mx.concatenate(arrays, axis=-2)


@dataclass(frozen=True)
class _Copy:
    """Parts whose bytes are written into the new array `target` once that is evaluated."""

    target: Any
    parts: Sequence[tuple[Any, int]]
    width: int
    """Bytes of one token of one head."""

    @classmethod
    def of(cls, parts: Sequence[tuple[Any, int]], room: int, copies: list[_Copy]) -> Any:
        """The array [..., tokens + room, width] that `make` fills later. Raises `ValueError` if the parts do not fit."""
        first = parts[0][0]
        dtype = _BY_NAME.get(first.dtype) if isinstance(first, Tensor) else first.dtype
        if dtype is None:
            raise ValueError(f"MLX knows no {first.dtype}")
        shapes = {(*array.shape[:-2], array.shape[-1], _name(array)) for array, _ in parts}
        if len(shapes) > 1:
            raise ValueError(f"parts of other shapes: {sorted(map(str, shapes))}")
        shape = (*first.shape[:-2], sum(take for _, take in parts) + max(0, room), first.shape[-1])
        target = mx.zeros((math.prod(shape) * dtype.size,), dtype=mx.uint8)
        copies.append(cls(target, parts, shape[-1] * dtype.size))
        return target.view(dtype).reshape(shape)

    def make(self) -> None:
        """Fill the array. numpy may write into MLX's memory: https://ml-explore.github.io/mlx/build/html/usage/numpy.html."""
        heads = math.prod(self.parts[0][0].shape[:-2])
        target, at = np.asarray(self.target).reshape(heads, -1, self.width), 0
        for array, take in self.parts:
            data = array.data if isinstance(array, Tensor) else memoryview(array.reshape(-1).view(mx.uint8))
            target[:, at : at + take] = np.frombuffer(data, np.uint8).reshape(heads, -1, self.width)[:, :take]
            at += take


def _name(array: Any) -> str:
    return array.dtype if isinstance(array, Tensor) else _DTYPES[array.dtype]


def _flatten(value: Any, place: str, arrays: Arrays) -> Any:
    """A tree of arrays and plain values as JSON. Arrays go to `arrays`, and their names stand in the tree."""
    if isinstance(value, mx.array):
        name = f"{place}.s{len(arrays)}"
        arrays[name] = mx.contiguous(value)
        return {"array": name}
    if isinstance(value, dict):
        return {"dict": {name: _flatten(item, place, arrays) for name, item in value.items()}}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_flatten(item, place, arrays) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise Unsupported(f"a layer's state includes a {type(value).__name__}")


def _unflatten(tree: Mapping[str, Any], arrays: Arrays) -> Any:
    ((kind, value),) = tree.items()
    match kind:
        case "array":
            # A view of its own: the library writes into slices, and other rows hold the same array.
            return arrays[value][...]
        case "dict":
            return {name: _unflatten(item, arrays) for name, item in value.items()}
        case "list":
            return [_unflatten(item, arrays) for item in value]
        case "tuple":
            return tuple(_unflatten(item, arrays) for item in value)
        case "value":
            return value
    raise ValueError(f"no part of a cache is a {kind}")
