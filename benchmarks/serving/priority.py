"""Measure how long an interactive request waits beside fifty long batch requests, and how much it slows the batch.

    make bench-serving        (python -m benchmarks.serving.priority [--batch N])

`idle` is the interactive request's time to the first text on an idle engine. `tick` is the time of one decode step of
the full batch (between two events of one of its streams). `wait` is the time to the first text while some batch
requests run and the others wait; it is also given as a number of ticks above idle. `throughput` divides the batch's
tokens per second with an interactive request every two seconds by those without any.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from typing import Any

from benchmarks.kv.checkpoints import checkpoint
from benchmarks.kv.client import Texts, message, side_by_side
from benchmarks.kv.report import parser, write
from benchmarks.kv.servers import ROOMY, Server
from benchmarks.serving.client import Stream, stream
from benchmarks.serving.streams import avoid_core

BATCH_PROMPT_TOKENS, BATCH_TOKENS, PROMPT_TOKENS, TOKENS = 256, 200, 32, 8
EVERY_SECONDS = 2.0


def main() -> int:
    options = parser(__doc__, "serving-priority.json", "nano")
    options.add_argument("--batch", type=int, default=50, help="number of batch requests")
    arguments = options.parse_args()
    arguments.servers = ["duet"]
    begun = time.monotonic()
    avoid_core(arguments.core)
    found = {name: measure(name, arguments) for name in arguments.checkpoints}
    for name, one in found.items():
        print(name, one)
    write(arguments.json, arguments, begun, {"checkpoints": found})
    return 0


def measure(name: str, arguments: Any) -> dict[str, float]:
    folder = checkpoint(name)
    texts = Texts(folder)
    with side_by_side(arguments.servers, folder, ROOMY, peers=arguments.peers, core=arguments.core) as clients:
        server = clients["duet"].server
        return asyncio.run(run(server, texts, arguments.batch))


async def run(server: Server, texts: Texts, count: int) -> dict[str, float]:
    stamp = f"{time.time_ns():x}"

    def quick(i: int) -> dict[str, Any]:
        return _asked(texts.make(PROMPT_TOKENS, f"{stamp} quick {i}"), TOKENS)

    idle = [(await stream(server, quick(i), {"X-Duet-Priority": "interactive"})).first_text_seconds for i in range(5)]
    alone, _ = await batch(server, texts, f"{stamp} alone", count)
    waits: list[float] = []

    async def visits() -> None:
        for i in range(1000):
            await asyncio.sleep(EVERY_SECONDS)
            waits.append((await stream(server, quick(100 + i), {"X-Duet-Priority": "interactive"})).first_text_seconds)

    visiting = asyncio.create_task(visits())
    beside, streams = await batch(server, texts, f"{stamp} beside", count)
    visiting.cancel()
    ticks = [after - before for one in streams for before, after in zip(one.times, one.times[1:], strict=False)]
    tick = statistics.median(ticks)
    return {
        "idle_seconds": round(statistics.median(idle), 4),
        "tick_seconds": round(tick, 4),
        "wait_seconds_median": round(statistics.median(waits), 4),
        "wait_seconds_worst": round(max(waits), 4),
        "ticks_above_idle_median": round((statistics.median(waits) - statistics.median(idle)) / tick, 2),
        "ticks_above_idle_worst": round((max(waits) - statistics.median(idle)) / tick, 2),
        "interactive_requests": len(waits),
        "batch_throughput": round(beside / alone, 3),
    }


async def batch(server: Server, texts: Texts, seed: str, count: int) -> tuple[float, list[Stream]]:
    """Send all batch requests at once. Returns their tokens per second together, and their streams."""
    begun = time.perf_counter()
    bodies = [_asked(texts.make(BATCH_PROMPT_TOKENS, f"{seed} {i}"), BATCH_TOKENS) for i in range(count)]
    streams = await asyncio.gather(*(stream(server, body, {"X-Duet-Priority": "batch"}) for body in bodies))
    return sum(one.tokens for one in streams) / (time.perf_counter() - begun), streams


def _asked(text: str, tokens: int) -> dict[str, Any]:
    return {"messages": [message("user", text)], "max_tokens": tokens, "temperature": 0.0}


if __name__ == "__main__":
    sys.exit(main())
