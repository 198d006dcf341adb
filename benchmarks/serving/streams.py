"""Compare decode speed over HTTP with `mlx_vlm.server`, `mlx_lm.server` and the bare model: one stream, and eight.

    make bench-serving        (python -m benchmarks.serving.streams [--rounds N])

All servers run at once on one shared core, and the client runs on another. They are asked in turn and send one event
per token. The bare model runs on the servers' core too, in every round. `of_bare` divides the bare loop's seconds per
token by the server's; the figure is the median over the rounds. For it the loop runs the model as mlx-vlm loads it; for
`of_laid_out` the weights have the engine's layout for the CPU. CPU time is that of all processes of the server,
including work other than answering. The checkpoint is random: this measures the mechanism, not quality.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.kv.checkpoints import checkpoint
from benchmarks.kv.client import Client, Texts, message, side_by_side
from benchmarks.kv.prefix import rotated
from benchmarks.kv.report import parser, table, write
from benchmarks.kv.servers import ROOMY, label, pinning
from benchmarks.serving.client import cpu_seconds, stream

PROMPT_TOKENS, TOKENS, CLIENTS = 32, 128, 8
GREEDY: dict[str, Any] = {"temperature": 0.0}
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 1}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "greedy": (1, GREEDY), "top-p": (1, SAMPLED), "greedy x8": (CLIENTS, GREEDY), "top-p x8": (CLIENTS, SAMPLED),
}  # fmt: skip


def main() -> int:
    options = parser(__doc__, "serving-streams.json", "nano")
    options.add_argument("--rounds", type=int, default=5, help="number of rounds; figures are medians over them")
    arguments = options.parse_args()
    begun = time.monotonic()
    avoid_core(arguments.core)
    found = {name: measure(name, arguments) for name in arguments.checkpoints}
    for name, servers in found.items():
        rows = [
            [
                server,
                case,
                *(f"{one[key]:.2f}" for key in ("of_bare", "of_laid_out", "tokens_per_second", "cpu_ms_a_token")),
            ]
            for server, cases in servers.items()
            for case, one in cases.items()
        ]
        print(f"\n{name}\n" + table(["server", "case", "of bare", "of laid out", "tokens/s", "CPU ms a token"], rows))
    write(arguments.json, arguments, begun, {"checkpoints": found})
    return 0


def avoid_core(core: int) -> None:
    """Keep this process, the client, off the servers' core, if the system can do that."""
    if pinning(core) and len(others := os.sched_getaffinity(0) - {core}) > 0:
        os.sched_setaffinity(0, others)


def measure(name: str, arguments: Any) -> dict[str, dict[str, dict[str, float]]]:
    """The figures of each case, for each server."""
    folder, taken = checkpoint(name), defaultdict[str, dict[str, list[dict[str, float]]]](lambda: defaultdict(list))
    texts = Texts(folder)
    with side_by_side(arguments.servers, folder, ROOMY, peers=arguments.peers, core=arguments.core) as clients:
        for number in range(arguments.rounds):
            for case, (count, sampling) in CASES.items():
                bare, laid_out = (bare_seconds(folder, count, arguments.core, *more) for more in ((), ("--laid-out",)))
                for server in rotated(list(clients), number):
                    prompts = [texts.make(PROMPT_TOKENS, f"{number} {case} {i}") for i in range(count)]
                    one = asyncio.run(ask(clients[server], prompts, sampling))
                    step = one.pop("step_seconds")
                    taken[server][case].append({**one, "of_bare": bare / step, "of_laid_out": laid_out / step})
                    print(f"round {number} {case:10} {server:8} {taken[server][case][-1]}", file=sys.stderr)
    return {
        label(server): {
            case: {key: round(statistics.median(one[key] for one in rounds), 4) for key in rounds[0]}
            for case, rounds in cases.items()
        }
        for server, cases in taken.items()
    }


async def ask(client: Client, prompts: list[str], sampling: Mapping[str, Any]) -> dict[str, float]:
    """Send all prompts at once. `step_seconds` is one stream's time per token; tokens per second count all streams."""
    before, pid = cpu_seconds(client.server.pid), client.server.pid
    begun = time.perf_counter()
    bodies = [{"messages": [message("user", text)], "max_tokens": TOKENS, **sampling} for text in prompts]
    streams = await asyncio.gather(*(stream(client.server, body) for body in bodies))
    seconds, tokens = time.perf_counter() - begun, sum(one.tokens for one in streams)
    spent = (cpu_seconds(pid) or 0.0) - (before or 0.0)
    return {
        "step_seconds": statistics.median(one.seconds_a_token for one in streams),
        "tokens_per_second": tokens / seconds,
        "cpu_ms_a_token": 1000 * spent / tokens,
        "tokens": tokens / len(streams),
    }


def bare_seconds(folder: Path, rows: int, core: int, *more: str) -> float:
    command = [
        *pinning(core), sys.executable, "-P", "-m", "benchmarks.serving.bare", str(folder), "--tokens", str(TOKENS),
        "--prompt-tokens", str(PROMPT_TOKENS), "--rows", str(rows), *more,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["seconds_a_token"])


if __name__ == "__main__":
    sys.exit(main())
