"""Memory of the whole stack at rest: RSS of every process, less the weights that are loaded.

    make footprint            (python -m benchmarks.footprint --json FILE)

Measured twice: after start, with no model loaded; and after one chat, one embedding and one transcription, idle again. RSS
counts shared pages once for each process; on Linux PSS, which shares them out, is printed beside it.
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
        total = f"{state['rss_mb']:.0f} MB RSS less {state['weights_mb']:.0f} MB of weights = {state['net_mb']:.0f} MB"
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
    """The stack's processes with their memory now; megabytes are millions of bytes."""
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
    """(parent, RSS in megabytes, command) of every process, by ps, which macOS and Linux both have."""
    table = subprocess.run(["ps", "-axo", "pid=,ppid=,rss=,args="], capture_output=True, text=True, check=True).stdout
    found = {}
    for line in table.splitlines():
        pid, parent, kilobytes, command = line.split(None, 3)
        shown = command.partition(" -m ")[2][:60] or command[-60:]
        found[int(pid)] = (int(parent), int(kilobytes) * 1024 / 1e6, shown)
    return found


def descends(pid: int, ancestor: int, parents: Mapping[int, int]) -> bool:
    """Whether a process is the ancestor or came from it."""
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
