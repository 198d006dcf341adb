"""How weights lie in memory where MLX computes on the CPU."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import mlx.core as mx
from mlx import nn


def lay_out(model: nn.Module, *, generates: bool) -> None:
    """Lay float32 matrices of linear layers out by input instead of by output, where the CPU computes.

    The arrays and their shapes stay the same. Only their order in memory changes, to the one in which the BLAS of MLX's CPU back
    end on Linux is fast: its time halves, for one row as for hundreds (MLX 0.32). Products without a bias are the same bit for
    bit. With a bias they are the same up to rounding, because that BLAS adds it first in one order and last in the other. Order
    makes no difference to Metal, nor to other types, which have kernels of their own on the CPU. One matrix at a time is in
    memory twice. `generates`: embeddings may be output layers.
    """
    if mx.default_device() != mx.Device(mx.cpu):
        return
    sharing = defaultdict[int, list[Any]](list)
    for _, layer in model.named_modules():
        if type(layer) in (nn.Linear, nn.Embedding) and layer.weight.dtype == mx.float32:
            sharing[id(layer.weight)].append(layer)
    outputs = {layer.weight.shape for layers in sharing.values() for layer in layers if type(layer) is nn.Linear}
    for layers in sharing.values():
        # For an embedding this pays only where it is the output layer too: looking rows up becomes slower, but they are few.
        is_output = any(type(layer) is nn.Linear for layer in layers)
        if is_output or (generates and layers[0].weight.shape not in outputs):
            laid = mx.contiguous(layers[0].weight.T).T
            mx.eval(laid)
            for layer in layers:
                layer.weight = laid
