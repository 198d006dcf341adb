"""Measure the decode speed of a checkpoint without any server: what the device can do. Prints seconds per token.

    python -m benchmarks.serving.bare FOLDER --tokens 128 --prompt-tokens 32 [--rows 8] [--laid-out]

It uses mlx-vlm's model and cache as mlx-vlm loads them, decodes greedily, and launches the next step before it reads
the last one. With `--laid-out` the weights have the layout that the engine uses on a CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_vlm.models.cache import make_prompt_cache
from mlx_vlm.utils import load

from engine.worker.runtime.layout import lay_out

REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--laid-out", action="store_true")
    arguments = parser.parse_args()
    loaded, _ = load(str(arguments.folder))
    if arguments.laid_out:
        lay_out(loaded, generates=True)
    model = loaded.language_model
    taken = [once(model, arguments.rows, arguments.prompt_tokens, arguments.tokens) for _ in range(REPEATS + 1)][1:]
    print(json.dumps({"seconds_a_token": statistics.median(taken)}))


def once(model: Any, rows: int, prompt_tokens: int, tokens: int) -> float:
    """Seconds per decode step."""
    cache = make_prompt_cache(model)
    ids = mx.array([list(range(100, 100 + prompt_tokens))] * rows)
    token = mx.argmax(model(ids, cache=cache).logits[:, -1], axis=-1)
    mx.eval(token)
    begun = time.perf_counter()
    for _ in range(tokens):
        following = mx.argmax(model(token[:, None], cache=cache).logits[:, -1], axis=-1)
        mx.async_eval(following)
        token.tolist()
        token = following
    return (time.perf_counter() - begun) / tokens


if __name__ == "__main__":
    main()
