"""Measure lookups, start and memory of a directory of 100,000 KV entries, beside one of 1,000 in the same run.

    python -m benchmarks.kv.growth [--entries N] [--lookups N]

The entries belong to sequences of 32,000 tokens. Each sequence has 125 consecutive blocks of 256 tokens, and a
checkpoint of the state layers every 25 blocks. Every entry has its row and its file. Files are short, because no lookup
opens one. The first 500 entries go through `Directory.add`, as in the engine. The others skip its limits: their rows
are written thousands to a transaction.

A lookup is `planner.plan` over the index alone; nothing of the index is in RAM. Prompts have 2,048 and 30,000 tokens.
Either all but the last 30 tokens are known (hit) or none is (miss). Each is measured for a model with and one without
state layers. Hashing the prompt's tokens into keys is timed separately. Opening, sweeping (it compares all file names
with all rows) and lookups run in a process of their own; before it starts, the index is dropped from the page cache
where the system allows it. The table shows the median of the runs, and memory is the process's RSS. On a busy machine
CPU time says more than the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.footprint import processes
from benchmarks.kv.disk import drop_from_page_cache
from benchmarks.kv.report import RESULTS, table, write
from benchmarks.kv.servers import PEERS
from engine.kvstore import blobs
from engine.kvstore.directory import Directory, Limits
from engine.kvstore.index import Entry, Kind
from engine.worker.kvcache import chunks
from engine.worker.kvcache.planner import Prompt, plan

ROOT = hashlib.sha256(b"growth").digest()
LIMITS = Limits(1 << 50, 1 << 50, free_bytes=0)
BLOCKS, CHECKPOINT_EVERY = 125, 25
ENTRIES_A_SEQUENCE = BLOCKS + BLOCKS // CHECKPOINT_EVERY
FLOOR_ENTRIES, ADDED_WHOLE, ROWS_AT_ONCE = 1_000, 500, 5_000
PROMPT_TOKENS, NEW_TOKENS = (2_048, 30_000), 30
VOCABULARY = 150_000
CONTENT = blobs.Tensor("U8", (64,), memoryview(bytes(64)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=100_000, help="entries in the large directory")
    parser.add_argument("--lookups", type=int, default=300, help="lookups for each figure")
    parser.add_argument("--runs", type=int, default=3, help="runs per directory, each in a process of its own")
    parser.add_argument("--json", type=Path, default=RESULTS / "kv-growth.json", help="write the figures to this file")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.set_defaults(core=None, peers=PEERS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure, arguments.entries, arguments.lookups)))
        return 0
    begun, found = time.monotonic(), {}
    for entries in (FLOOR_ENTRIES, arguments.entries):
        with tempfile.TemporaryDirectory(prefix="duet-growth-") as root:
            filled = fill(Path(root) / "kv", entries)
            runs = [_in_a_process(Path(root) / "kv", entries, arguments.lookups) for _ in range(arguments.runs)]
            found[str(entries)] = {**filled, **summary(runs)}
            print(f"{entries} entries: written in {filled['fill_seconds']} s", flush=True)
    print(shown(found))
    write(arguments.json, arguments, begun, {"directories": found})
    return 0


# Entries -------------------------------------------------------------------------------------------------------------


def fill(folder: Path, entries: int) -> dict[str, Any]:
    """Write `entries` entries. Returns seconds, how many went through `Directory.add`, and the index's size."""
    begun = time.monotonic()
    with contextlib.closing(Directory(folder, LIMITS, {"model": "growth"})) as directory:
        rest = _entries(entries)
        for entry in itertools.islice(rest, ADDED_WHOLE):
            directory.add(entry, {"0.k": CONTENT}, {})
        database = directory.index._db  # to write many rows in one transaction
        while part := [*itertools.islice(rest, ROWS_AT_ONCE)]:
            database.execute("BEGIN")
            for entry in part:
                path = directory.file(entry.key)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"short")
                directory.index.add(entry, now=time.time())
            database.execute("COMMIT")
    return {
        "fill_seconds": round(time.monotonic() - begun, 1),
        "added_whole": min(entries, ADDED_WHOLE),
        "index_bytes": sum(path.stat().st_size for path in folder.glob("index.sqlite*")),
    }


def sequence(number: int, tokens: int = BLOCKS * chunks.BLOCK_TOKENS) -> chunks.Tokens:
    """The first tokens of a sequence."""
    found = np.random.default_rng(number).integers(0, VOCABULARY, BLOCKS * chunks.BLOCK_TOKENS, dtype="<u4")
    return found[:tokens]


def _entries(count: int) -> Iterator[Entry]:
    number = made = 0
    while made < count:
        tokens = sequence(number)
        for i, block in enumerate(chunks.blocks(ROOT, tokens, ())):
            found = [_entry(block.key, "block", block.parent, block.start, block.end, tokens)]
            if i % CHECKPOINT_EVERY == CHECKPOINT_EVERY - 1:
                key = chunks.checkpoint_key(block.key, tokens[:0], block.end, ())
                found.append(_entry(key, "checkpoint", block.key, block.end, block.end, tokens))
            for entry in found[: count - made]:
                made += 1
                yield entry
        number += 1


def _entry(key: bytes, kind: Kind, parent: bytes, start: int, end: int, tokens: chunks.Tokens) -> Entry:
    return Entry(key, kind, parent, start, end, tokens[start:end].tobytes(), (), 5, 1.0, tip=False)


# One process ---------------------------------------------------------------------------------------------------------


def measure(folder: Path, entries: int, lookups: int) -> dict[str, Any]:
    """Open the directory, sweep it and look up in it. Returns seconds, and megabytes of memory after each step."""
    found: dict[str, Any] = {"memory_mb": {"before": _resident_megabytes()}}
    begun = time.perf_counter()
    directory = Directory(folder, LIMITS, {"model": "growth"})
    found["open_seconds"] = time.perf_counter() - begun
    found["memory_mb"]["opened"] = _resident_megabytes()
    begun, worked = time.perf_counter(), time.process_time()
    removed = directory.sweep()
    found["sweep_seconds"], found["sweep_cpu_seconds"] = time.perf_counter() - begun, time.process_time() - worked
    assert removed == 0, f"the sweep removed {removed} entries or files"
    assert directory.contents.entries == entries, "not all entries are there"
    found["memory_mb"]["swept"] = _resident_megabytes()
    found["lookups"] = _lookups(directory, entries, lookups)
    found["memory_mb"]["looked_up"] = _resident_megabytes()
    directory.close()
    return found


def _lookups(directory: Directory, entries: int, count: int) -> dict[str, Any]:
    whole = max(1, entries // ENTRIES_A_SEQUENCE)
    draw, found = random.Random(1), {}
    for tokens in PROMPT_TOKENS:
        for known in (True, False):
            numbers = [draw.randrange(whole) if known else whole + 1 + i for i in range(count)]
            for has_state in (False, True):
                naming, planning, working = [], [], []
                for number in numbers:
                    new = np.full(NEW_TOKENS, VOCABULARY, dtype="<u4")
                    prompt_tokens = np.concatenate([sequence(number, tokens - NEW_TOKENS), new])
                    begun = time.perf_counter()
                    prompt = Prompt.of(ROOT, prompt_tokens, ())
                    named, worked = time.perf_counter(), time.thread_time()
                    match = plan(prompt, directory.index, has_state=has_state)
                    working.append(time.thread_time() - worked)
                    planning.append(time.perf_counter() - named)
                    naming.append(named - begun)
                    assert match.matched == (tokens - NEW_TOKENS if known else 0), "the lookup found something else"
                kind = f"{tokens} tokens, {'hit' if known else 'miss'}{', state layers' if has_state else ''}"
                found[kind] = {
                    "plan": _percentiles(planning),
                    "plan_cpu": _percentiles(working),
                    "name": _percentiles(naming),
                }
    return found


def _percentiles(seconds: list[float]) -> dict[str, float]:
    """The 50th and 99th percentile in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50_ms": cuts[49] * 1e3, "p99_ms": cuts[98] * 1e3}


def _resident_megabytes() -> float:
    return processes()[os.getpid()][1]


def _in_a_process(folder: Path, entries: int, lookups: int) -> dict[str, Any]:
    drop_from_page_cache([*folder.glob("index.sqlite*")])
    command = [
        sys.executable, "-P", "-m", "benchmarks.kv.growth", "--measure", str(folder), "--entries", str(entries),
        "--lookups", str(lookups),
    ]  # fmt: skip
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return found


# Figures -------------------------------------------------------------------------------------------------------------


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every figure over the runs."""
    return {name: _median([run[name] for run in runs]) for name in runs[0]}


def _median(values: list[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return {name: _median([value[name] for value in values]) for name in values[0]}
    return round(statistics.median(values), 4)


def shown(found: Mapping[str, Any]) -> str:
    rows = [
        ["index, MB", *(f"{entry['index_bytes'] / 1e6:.1f}" for entry in found.values())],
        ["open, ms", *(f"{entry['open_seconds'] * 1e3:.1f}" for entry in found.values())],
        ["sweep, ms", *(f"{entry['sweep_seconds'] * 1e3:.1f}" for entry in found.values())],
        ["sweep, ms of CPU time", *(f"{entry['sweep_cpu_seconds'] * 1e3:.1f}" for entry in found.values())],
    ]
    first = next(iter(found.values()))
    for moment in first["memory_mb"]:
        cells = [f"{entry['memory_mb'][moment]:.1f}" for entry in found.values()]
        rows.append([f"RSS {moment.replace('_', ' ')}, MB", *cells])
    for kind in first["lookups"]:
        for name, of in (("plan", ""), ("plan_cpu", " of CPU time")):
            figures = [entry["lookups"][kind][name] for entry in found.values()]
            cells = [f"{figure['p50_ms']:.2f} / {figure['p99_ms']:.2f}" for figure in figures]
            rows.append([f"{kind}: p50 / p99, ms{of}", *cells])
    return table(["entries", *found], rows)


if __name__ == "__main__":
    sys.exit(main())
