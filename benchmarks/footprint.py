"""Measure the memory of the idle stack: the RSS of every process, minus the loaded weights.

    make footprint            (python -m benchmarks.footprint --json FILE)

It measures twice: after start, when no model is loaded; and when the stack is idle again after one chat, one embedding
and one transcription. RSS counts a shared page once for each process. On Linux the script also prints PSS, which
divides a shared page among its processes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import models
from duet.testing.stack import Stack, running

GOAL_MEGABYTES = 600
LOADED = ("duet-tiny-chat", "duet-tiny-embed", "duet-tiny-asr")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    with running() as stack:
        time.sleep(2)
        found = {"after start": measure(stack, [])}
        warm(stack)
        time.sleep(2)
        found["after one request of each kind"] = measure(stack, list(LOADED))
    for name, state in found.items():
        print(f"{name}:")
        for process in state["processes"]:
            print(
                f"  {process['rss_mb']:8.1f} MB RSS {process['pss_mb'] or float('nan'):8.1f} MB PSS  {process['command']}"
            )
        total = f"{state['rss_mb']:.0f} MB RSS minus {state['weights_mb']:.0f} MB of weights = {state['net_mb']:.0f} MB"
        print(f"  total: {total} (goal: {GOAL_MEGABYTES} MB); PSS {state['pss_mb'] or float('nan'):.0f} MB")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def warm(stack: Stack) -> None:
    with stack.client(stack.engine_url) as client:
        body: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
        client.post("/v1/chat/completions", json=body).raise_for_status()
        client.post("/v1/embeddings", json={"model": "embedding", "input": "hello"}).raise_for_status()
    with stack.client(stack.router_url) as client:
        clip = (models.CARDS / "demo" / "clip_zh.flac").read_bytes()
        client.post("/v1/audio/transcriptions", files={"file": ("clip.flac", clip)}).raise_for_status()


def measure(stack: Stack, loaded: list[str]) -> dict[str, Any]:
    """The stack's processes and the memory they use now. A megabyte is a million bytes."""
    table = processes()
    found: list[dict[str, Any]] = [
        {"pid": pid, "command": command, "rss_mb": rss_megabytes, "pss_mb": _pss_megabytes(pid)}
        for pid, (_, rss_megabytes, command) in table.items()
        if descends(pid, stack.pid, {child: parent for child, (parent, _, _) in table.items()})
    ]
    weights = sum(file.stat().st_size for name in loaded for file in (models.EMBEDDED / name).glob("model*")) / 1e6
    rss = sum(entry["rss_mb"] for entry in found)
    shared = [entry["pss_mb"] for entry in found]
    return {
        "processes": found,
        "rss_mb": round(rss, 1),
        "pss_mb": round(sum(shared), 1) if None not in shared else None,
        "weights_mb": round(weights, 1),
        "net_mb": round(rss - weights, 1),
    }


def processes() -> dict[int, tuple[int, float, str]]:
    """(parent, RSS in megabytes, command) of every process, by pid. Read from `ps`, which macOS and Linux both have."""
    table = subprocess.run(["ps", "-axo", "pid=,ppid=,rss=,args="], capture_output=True, text=True, check=True).stdout
    found = {}
    for line in table.splitlines():
        pid, parent, kilobytes, command = line.split(None, 3)
        shown = command.partition(" -m ")[2][:60] or command[-60:]
        found[int(pid)] = (int(parent), int(kilobytes) * 1024 / 1e6, shown)
    return found


def descends(pid: int, ancestor: int, parents: Mapping[int, int]) -> bool:
    """Whether a process is `ancestor` itself or one of its descendants. `parents` maps a pid to its parent's."""
    while pid > 1:
        if pid == ancestor:
            return True
        pid = parents.get(pid, 0)
    return False


def _pss_megabytes(pid: int) -> float | None:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Pss:")), None)


if __name__ == "__main__":
    sys.exit(main())
