"""Measure how long a running stream pauses while a long prompt arrives, beside `mlx_vlm.server` and `mlx_lm.server`.

    make bench-serving        (python -m benchmarks.serving.stall [--rounds N])

In the middle of a stream a cold prompt of 2,048 tokens is sent. `gap` is the stream's longest pause from then on.
`prefill` is the time to the first text of a prompt of that length alone (another text, measured before). `share` is
`gap` divided by `prefill`.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from typing import Any

from benchmarks.kv.checkpoints import checkpoint
from benchmarks.kv.client import Client, Texts, message, side_by_side
from benchmarks.kv.prefix import rotated
from benchmarks.kv.report import parser, table, write
from benchmarks.kv.servers import ROOMY
from benchmarks.serving.client import stream
from benchmarks.serving.streams import avoid_core

PROMPT_TOKENS, STREAM_TOKENS, LEAD_SECONDS = 2048, 600, 0.5


def main() -> int:
    options = parser(__doc__, "serving-stall.json", "nano,hybrid")
    options.add_argument("--rounds", type=int, default=3, help="number of rounds; figures are medians over them")
    arguments = options.parse_args()
    begun = time.monotonic()
    avoid_core(arguments.core)
    found = {name: measure(name, arguments) for name in arguments.checkpoints}
    for name, servers in found.items():
        rows = [
            [server, *(f"{one[key]:.3f}" for key in ("gap", "prefill", "share"))] for server, one in servers.items()
        ]
        print(f"\n{name}\n" + table(["server", "gap s", "prefill s", "share"], rows))
    write(arguments.json, arguments, begun, {"checkpoints": found})
    return 0


def measure(name: str, arguments: Any) -> dict[str, dict[str, float]]:
    folder = checkpoint(name)
    texts, stamp = Texts(folder), f"{time.time_ns():x}"
    taken: dict[str, list[dict[str, float]]] = {server: [] for server in arguments.servers}
    with side_by_side(arguments.servers, folder, ROOMY, peers=arguments.peers, core=arguments.core) as clients:
        for number in range(arguments.rounds):
            for server in rotated(list(clients), number):
                cold = [
                    texts.make(PROMPT_TOKENS, f"{stamp} {number} {server} {which}") for which in ("alone", "beside")
                ]
                taken[server].append(asyncio.run(once(clients[server], *cold)))
                print(f"round {number} {server:8} {taken[server][-1]}", file=sys.stderr)
    return {
        server: {key: round(statistics.median(one[key] for one in rounds), 4) for key in rounds[0]}
        for server, rounds in taken.items()
    }


async def once(client: Client, alone: str, beside: str) -> dict[str, float]:
    def asked(text: str, tokens: int) -> dict[str, Any]:
        return {"messages": [message("user", text)], "max_tokens": tokens, "temperature": 0.0}

    prefill = (await stream(client.server, asked(alone, 4))).first_text_seconds
    running = asyncio.create_task(stream(client.server, asked("Tell me something long.", STREAM_TOKENS)))
    await asyncio.sleep(LEAD_SECONDS)
    sent = time.perf_counter()
    late = await stream(client.server, asked(beside, 4))
    times = [moment for moment in (await running).times if moment >= sent]
    if not times or times[-1] < late.times[0]:
        raise RuntimeError(f"{client.server.name}: the stream ended before the long prompt was read")
    gap = max(after - before for before, after in zip([sent, *times], times, strict=False))
    return {"gap": gap, "prefill": prefill, "share": gap / prefill, "first_text_beside": late.first_text_seconds}


if __name__ == "__main__":
    sys.exit(main())
