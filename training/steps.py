"""A training loop that may be interrupted at any time: rate and data depend on the step, checkpoints are atomic."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def train(
    model: nn.Module,
    loss_of_step: Callable[[int], Tensor],
    *,
    steps: int,
    checkpoint: Path,
    peak_rate: float,
    warm_up: int = 200,
    constant_until: float = 0.3,
    final_rate: float = 0.02,
    weight_decay: float = 0.01,
    max_norm: float = 2.0,
    every: int = 200,
    on_report: Callable[[int], str] | None = None,
) -> None:
    """Run AdamW up to step `steps`, from `checkpoint` if it exists. The model ends trained and in evaluation mode.

    `loss_of_step` gets the number of the step and must draw its data and noise from it alone (`seed_of_step`), so that
    an interrupted run sees the same data as an uninterrupted one. The rate warms up, stays at `peak_rate` until the
    share `constant_until` of all steps, and then falls along a cosine to `final_rate` times `peak_rate`. Every `every`
    steps it saves the checkpoint and prints a line that ends with `on_report`'s text. Raises RuntimeError if the loss
    is not finite.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.98), weight_decay=weight_decay)
    first = _restored_step(checkpoint, model, optimiser)
    recent: list[float] = []
    began = time.monotonic()
    model.train()
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = peak_rate * rate(step, steps, warm_up, constant_until, final_rate)
        torch.manual_seed(seed_of_step(step))
        recent.append(_update(model, optimiser, loss_of_step, step, max_norm))
        if (step + 1) % every == 0 or step + 1 == steps:
            _save(checkpoint, {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1})
            minutes = (time.monotonic() - began) / 60
            line = f"step {step + 1}/{steps}  loss {sum(recent) / len(recent):.3f}  {minutes:.1f} min"
            if on_report:
                model.eval()
                with torch.no_grad():
                    line += "  " + on_report(step + 1)
                model.train()
            print(line, flush=True)
            recent.clear()
    model.eval()


def _restored_step(checkpoint: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    """Load the checkpoint if it exists. Returns the first step that is still to be run."""
    if not checkpoint.exists():
        return 0
    saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optimiser"])
    first = int(saved["step"])
    print(f"continuing at step {first}", flush=True)
    return first


def _update(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss_of_step: Callable[[int], Tensor],
    step: int,
    max_norm: float,
) -> float:
    """One step of gradient descent. Returns its loss. Raises RuntimeError if the loss is not finite."""
    loss = loss_of_step(step)
    if not math.isfinite(loss.item()):
        raise RuntimeError(f"the loss is {loss.item()} at step {step}")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimiser.step()
    return loss.item()


def rate(step: int, steps: int, warm_up: int, constant_until: float, final_rate: float) -> float:
    """The learning rate at `step` as a share of the peak rate."""
    warm = min(1.0, (step + 1) / max(1, warm_up))
    done = step / steps
    if done < constant_until:
        return warm
    fall = 0.5 * (1 + math.cos(math.pi * (done - constant_until) / (1 - constant_until)))
    return warm * (final_rate + (1 - final_rate) * fall)


def seed_of_step(step: int, salt: int = 0) -> int:
    """A multiplicative hash of the step (Knuth, TAOCP 6.4), so that neighbouring steps do not get neighbouring seeds."""
    return ((step + 1) * 2_654_435_761 + salt * 40_503) % 2**32


def _save(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".half")
    torch.save(state, half)
    half.replace(path)
