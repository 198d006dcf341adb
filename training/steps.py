"""A training loop that may be interrupted at any time: schedules by step count, one atomic checkpoint, data by step number."""

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
    """Run `steps` steps of AdamW, going on from `checkpoint` if it is there; the model ends in its trained state.

    `loss_of_step` gets the number of the step and must draw its data and noise from it alone (`seed_of_step`): then a run
    that was interrupted sees what an undisturbed one sees. The rate warms up, stays at `peak_rate` until the share
    `constant_until` of all steps, and falls to `final_rate` times it along a cosine.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.98), weight_decay=weight_decay)
    first = 0
    if checkpoint.exists():
        saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        first = int(saved["step"])
        print(f"going on at step {first}", flush=True)
    recent: list[float] = []
    began = time.monotonic()
    model.train()
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = peak_rate * rate(step, steps, warm_up, constant_until, final_rate)
        torch.manual_seed(seed_of_step(step))
        loss = loss_of_step(step)
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"the loss is {loss.item()} at step {step}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimiser.step()
        recent.append(loss.item())
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


def rate(step: int, steps: int, warm_up: int, constant_until: float, final_rate: float) -> float:
    """The share of the peak learning rate at `step`."""
    warm = min(1.0, (step + 1) / max(1, warm_up))
    done = step / steps
    if done < constant_until:
        return warm
    fall = 0.5 * (1 + math.cos(math.pi * (done - constant_until) / (1 - constant_until)))
    return warm * (final_rate + (1 - final_rate) * fall)


def seed_of_step(step: int, salt: int = 0) -> int:
    """Neighbouring steps must not get neighbouring streams: a multiplicative hash (Knuth, TAOCP 6.4)."""
    return ((step + 1) * 2_654_435_761 + salt * 40_503) % 2**32


def _save(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".half")
    torch.save(state, half)
    half.replace(path)
