"""Compare the decode speed of the worker's loop with that of the bare model: `make bench`.

    python -m benchmarks.decode [--model FOLDER] [--json FILE]

The bare loop uses mlx-vlm's model and cache, picks tokens greedily, and launches the next step before it reads the last
one. It shows what the device can do. The worker's loop adds scheduling, sampling, detokenisation, stop strings and
events. Both run in this process in turn, on the same prompt, and the figure is the median of their ratios. The embedded
chat model has 2.5 M parameters. A step costs next to nothing, so the ratio is the loop's worst case. A ratio measured
on a CPU says nothing about Metal.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import queue
import statistics
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_vlm.models.cache import make_prompt_cache

import models
from engine.fleet.protocol import EventFrame
from engine.types import Failed, GenerationRequest, Message, Part, SamplingParams, TextDelta
from engine.worker.loop import Loop
from engine.worker.model import Loaded
from engine.worker.prompts.template import render
from engine.worker.runtime.loader import load
from engine.worker_config import BatchLimits, WorkerConfig

TOKENS, ROUNDS = 128, 5
CASES = {
    "greedy": (1, SamplingParams(temperature=0.0)),
    "top-p": (1, SamplingParams(temperature=0.8, top_p=0.9, seed=1)),
    "greedy, 8 rows": (8, SamplingParams(temperature=0.0)),
    "top-p, 8 rows": (8, SamplingParams(temperature=0.8, top_p=0.9, seed=1)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=models.EMBEDDED / "duet-tiny-chat", help="a chat model's folder")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    # Without an end-of-sequence token every run has the same number of tokens.
    loaded = dataclasses.replace(load(arguments.model, "chat"), eos_ids=frozenset())
    found: dict[str, dict[str, float]] = {}
    for name, (rows, sampling) in CASES.items():
        ratios, speeds = [], []
        worker_seconds(loaded, rows, sampling)  # warm-up
        bare_seconds(loaded, rows)
        for _ in range(ROUNDS):
            bare, worker = bare_seconds(loaded, rows), worker_seconds(loaded, rows, sampling)
            ratios.append(bare / worker)
            speeds.append(rows * TOKENS / worker)
        found[name] = {
            "ratio": round(statistics.median(ratios), 3),
            "tokens_per_second": round(statistics.median(speeds)),
        }
        print(
            f"{name:16} {found[name]['ratio']:.2f} of the bare greedy loop, {found[name]['tokens_per_second']:.0f} tokens/s"
        )
    if arguments.json:
        machine = {"machine": platform.machine(), "system": platform.system(), "device": str(mx.default_device())}
        shown = {"model": arguments.model.name, "tokens": TOKENS, "rounds": ROUNDS, **machine, "cases": found}
        arguments.json.write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")


def _request(number: int, sampling: SamplingParams) -> GenerationRequest:
    message = Message("user", (Part("text", f"Who are you? Answer number {number}."),))
    return GenerationRequest(id=f"r{number}", model="m", messages=(message,), sampling=sampling, max_tokens=TOKENS)


class _Counter:
    """The sending side of a channel that counts tokens."""

    def __init__(self) -> None:
        self.tokens = 0

    def send(self, message: Any) -> None:
        for event in message.events if isinstance(message, EventFrame) else ():
            assert not isinstance(event, Failed), event
            self.tokens += isinstance(event, TextDelta)


def worker_seconds(loaded: Loaded, rows: int, sampling: SamplingParams) -> float:
    """Seconds that the worker's loop needs for all decode steps. Prefill does not count."""
    counter, mailbox = _Counter(), queue.SimpleQueue[Any]()
    channel: Any = counter
    batch = BatchLimits(max_rows=rows, chunk_tokens=4096)
    loop = Loop(loaded, channel, mailbox, WorkerConfig(model="m", path=b"m", batch=batch))
    for number in range(rows):
        mailbox.put(_request(number, sampling))
    while counter.tokens < rows:
        loop.tick()
    begun, counted = time.perf_counter(), counter.tokens
    while not loop.idle:
        loop.tick()
    assert counter.tokens == rows * TOKENS
    return (time.perf_counter() - begun) * rows * TOKENS / (rows * TOKENS - counted)


def bare_seconds(loaded: Loaded, rows: int) -> float:
    """Seconds that the model's own forward pass and argmax need. Each step is launched before the last one is read."""
    model = loaded.model.language_model
    prompt = loaded.tokenizer.encode(render(loaded, _request(0, SamplingParams())), add_special_tokens=False)
    cache = make_prompt_cache(model)
    ids = mx.array([prompt] * rows)
    token = mx.argmax(model(ids, cache=cache).logits[:, -1], axis=-1)
    mx.eval(token)
    begun = time.perf_counter()
    for _ in range(TOKENS):
        following = mx.argmax(model(token[:, None], cache=cache).logits[:, -1], axis=-1)
        mx.async_eval(following)
        token.tolist()
        token = following
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
