"""How weights lie in memory where MLX computes on the CPU."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn


def lay_out(model: nn.Module) -> None:
    """Lay float32 matrices of linear layers out by input instead of by output, where the CPU computes.

    The same arrays with the same shapes and, bit for bit, the same products, read in the order in which the BLAS of MLX's CPU
    back end on Linux is fast: one row or hundreds, its time halves (MLX 0.32). Other types have their own kernels there, to
    which order is the same, and so it is to Metal. One matrix at a time is in memory twice.
    """
    if mx.default_device() != mx.Device(mx.cpu):
        return
    layers = [layer for _, layer in model.named_modules() if type(layer) in (nn.Linear, nn.Embedding)]
    outputs = {layer.weight.shape for layer in layers if isinstance(layer, nn.Linear)}
    for layer in layers:
        # An embedding is worth it where it is the output layer too: looking rows up becomes slower, but these are few.
        if layer.weight.dtype == mx.float32 and (isinstance(layer, nn.Linear) or layer.weight.shape not in outputs):
            laid = _by_input(layer.weight)
            mx.eval(laid)
            layer.weight = laid


def _by_input(weight: Any) -> Any:
    return mx.contiguous(weight.T).T
