"""How weights lie in memory where MLX computes on the CPU."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import mlx.core as mx
from mlx import nn


def lay_out(model: nn.Module, *, generates: bool) -> None:
    """Lay float32 matrices of linear layers out by input instead of by output, where the CPU computes.

    The same arrays with the same shapes, read in the order in which the BLAS of MLX's CPU back end on Linux is fast: of one row
    or hundreds, its time halves (MLX 0.32). The products are the same bit for bit, with a bias to rounding: that BLAS adds it
    first in one order and last in the other. Other types have their own kernels there, to which order is the same, and so it is
    to Metal. One matrix at a time is in memory twice. `generates`: embeddings may be output layers.
    """
    if mx.default_device() != mx.Device(mx.cpu):
        return
    sharing = defaultdict[int, list[Any]](list)
    for _, layer in model.named_modules():
        if type(layer) in (nn.Linear, nn.Embedding) and layer.weight.dtype == mx.float32:
            sharing[id(layer.weight)].append(layer)
    outputs = {layer.weight.shape for layers in sharing.values() for layer in layers if type(layer) is nn.Linear}
    for layers in sharing.values():
        # An embedding is worth it where it is the output layer too: looking rows up becomes slower, but these are few.
        is_output = any(type(layer) is nn.Linear for layer in layers)
        if is_output or (generates and layers[0].weight.shape not in outputs):
            laid = mx.contiguous(layers[0].weight.T).T
            mx.eval(laid)
            for layer in layers:
                layer.weight = laid
