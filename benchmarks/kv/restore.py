"""Compare the restore of a 200 MB prefix from disk with a plain read of the same files.

    make bench-kv        (python -m benchmarks.kv.restore [--rounds N])

The checkpoint `wide` has few weights and the keys and values of a large model: 1,024 tokens take 201 MB. First the
prefix is requested three times. Then each round does this:

1. Stop the server and ask the kernel to drop the cache's files from memory.
2. Read the files one after the other, for the floor: once into one small buffer, once into new memory. On a virtual
   machine new memory alone costs as much as the disk. Drop the files again.
3. Start the server and send it another request, so that the cost of a first request does not count as restore.
4. Request the prefix twice: the first answer comes from disk, the second from memory.

The same rounds then run without dropping the files and show what the page cache gives: after a restart of the server
alone, the files are usually still in memory; after a restart of the machine they are not.

    restore seconds = time to the first text from disk - time to the first text from memory, in the same round
    throughput      = keys and values of the cached tokens / restore seconds

The time from memory contains the suffix, the answer's first token, and a copy from the memory tier, which a restore
does not make. The difference is therefore slightly shorter than a restore. The gross throughput divides by the whole
time to the first text instead.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.kv.checkpoints import CONFIGS, checkpoint, token_bytes
from benchmarks.kv.client import Client, Messages, Texts, message, side_by_side
from benchmarks.kv.disk import drop_from_page_cache, files_below, read_into_memory, sequential_read
from benchmarks.kv.report import parser, table, write
from benchmarks.kv.servers import ROOMY

GOAL = 0.6
STATES = ("page_cache_dropped", "page_cache_kept")
_BYTES = (
    "restored_bytes",
    "floor_bytes_per_second",
    "own_memory_floor_bytes_per_second",
    "restore_bytes_per_second",
)
_SHARES = ("of_floor", "of_own_memory_floor", "gross_of_floor")
SUFFIX_TOKENS, ANSWER_TOKENS = 8, 4


def main() -> int:
    options = parser(__doc__, "kv-restore.json", "wide")
    options.add_argument("--rounds", type=int, default=3, help="rounds without the page cache, and as many with it")
    options.add_argument(
        "--tokens", type=int, default=1024, help="tokens of the prefix; use fewer to try the script out"
    )
    options.set_defaults(servers=["duet", "mlx_vlm"])  # the other one keeps nothing on disk
    arguments = options.parse_args()
    begun = time.monotonic()
    found = {name: measure(name, arguments) for name in arguments.checkpoints}
    for name, servers in found.items():
        print(f"\n{name}: restore as a share of the disk's sequential read (goal: {GOAL})\n{shown(servers)}")
    write(arguments.json, arguments, begun, {"checkpoints": found})
    return 0


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one checkpoint on all servers that keep prompts on disk."""
    folder, found = checkpoint(name), {}
    texts, stamp = Texts(folder), f"{time.time_ns():x}"
    prefix = texts.make(arguments.tokens, stamp)
    with side_by_side(arguments.servers, folder, ROOMY, peers=arguments.peers, core=arguments.core) as clients:
        for server, client in clients.items():
            if client.server.recipe.cache is not None:
                measured = _restores(client, texts, prefix, arguments.rounds, token_bytes(CONFIGS[name]))
                found[server] = {"options": dict(client.server.recipe.options), **measured}
    return found


def _restores(client: Client, texts: Texts, prefix: str, rounds: int, bytes_a_token: int) -> dict[str, Any]:
    def asked(suffix: str) -> Messages:
        return [message("user", f"{prefix}\n\n{texts.make(SUFFIX_TOKENS, suffix)}")]

    cold, *_ = (client.ask(asked(f"question {i}"), max_tokens=ANSWER_TOKENS) for i in range(3))
    found: dict[str, Any] = {"cold_seconds": round(cold.first_text_seconds, 4)}
    for state in STATES:
        runs = []
        for i in range(rounds):
            files = _stop(client)
            run = _read(files, forgotten=state == STATES[0])
            client.restart()
            client.ask([message("user", "hello")], max_tokens=ANSWER_TOKENS)
            for source in ("disk", "memory"):
                answer = client.ask(asked(f"{source} {i} {state}"), max_tokens=ANSWER_TOKENS)
                run[f"{source}_seconds"] = answer.first_text_seconds
                run[f"{source}_tokens"] = answer.cached_tokens
            runs.append(run)
        found[state] = summary(runs, bytes_a_token)
    return found


def _stop(client: Client) -> list[Path]:
    """Stop the server. Returns the files of its cache: all are written by then."""
    client.close()
    client.server.stop()
    assert client.server.recipe.cache is not None
    return files_below(client.server.recipe.cache)


def _read(files: Sequence[Path], *, forgotten: bool) -> dict[str, Any]:
    """The floors: sizes and seconds of sequential reads, with `forgotten` from the disk if the system allows it."""
    dropped = forgotten and drop_from_page_cache(files)
    read_bytes, read_seconds = sequential_read(files)
    if forgotten:
        drop_from_page_cache(files)
    _, own_memory_seconds = read_into_memory(files)
    if forgotten:
        drop_from_page_cache(files)
    return {
        "dropped": dropped,
        "read_bytes": read_bytes,
        "read_seconds": read_seconds,
        "own_memory_seconds": own_memory_seconds,
    }


def summary(runs: Sequence[Mapping[str, Any]], bytes_a_token: int) -> dict[str, Any]:
    """Medians over the rounds. The throughput is None if no token was restored or the disk was as fast as memory."""
    seconds = statistics.median(run["disk_seconds"] for run in runs)
    beyond_memory = statistics.median(run["disk_seconds"] - run["memory_seconds"] for run in runs)
    restored = min(run["disk_tokens"] for run in runs) * bytes_a_token
    floor, own_memory_floor = (
        statistics.median(run["read_bytes"] / run[name] for run in runs)
        if all(run["read_bytes"] for run in runs)
        else None
        for name in ("read_seconds", "own_memory_seconds")
    )
    net = restored / beyond_memory if restored and beyond_memory > 0 else None
    return {
        "dropped": all(run["dropped"] for run in runs),
        "disk_seconds": round(seconds, 4),
        "memory_seconds": round(statistics.median(run["memory_seconds"] for run in runs), 4),
        "restore_seconds": round(beyond_memory, 4),
        "restored_bytes": restored,
        "bytes_on_disk": max(run["read_bytes"] for run in runs),
        "floor_bytes_per_second": floor and round(floor),
        "own_memory_floor_bytes_per_second": own_memory_floor and round(own_memory_floor),
        "restore_bytes_per_second": net and round(net),
        "gross_bytes_per_second": round(restored / seconds),
        "of_floor": round(net / floor, 3) if net and floor else None,
        "of_own_memory_floor": round(net / own_memory_floor, 3) if net and own_memory_floor else None,
        "gross_of_floor": round(restored / seconds / floor, 3) if floor else None,
    }


def shown(servers: dict[str, Any]) -> str:
    rows = []
    for name, found in servers.items():
        for state in STATES:
            entry = found[state]
            cells = [entry[key] for key in _BYTES]
            megabytes = ["-" if cell is None else f"{cell / 1e6:.0f}" for cell in cells]
            shares = ["-" if entry[key] is None else f"{entry[key]:.2f}" for key in _SHARES]
            seconds = [
                f"{value:.3f}" for value in (found["cold_seconds"], entry["memory_seconds"], entry["disk_seconds"])
            ]
            rows.append([f"{name}, {state.replace('_', ' ')}", *seconds, *megabytes, *shares])
    head = [
        *("server", "cold s", "memory s", "disk s", "restored MB", "floor MB/s", "own memory MB/s", "restore MB/s"),
        *("of floor", "of own memory", "gross"),
    ]
    return table(head, rows)


if __name__ == "__main__":
    sys.exit(main())
