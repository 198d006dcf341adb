"""Shared by the cache's benchmarks: their arguments, their JSON record, and tables."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.kv.servers import MAKERS, PEERS, label, pinning

RESULTS = Path("benchmarks/results")


def parser(description: str | None, result: str, checkpoints: str) -> argparse.ArgumentParser:
    """The arguments that all benchmarks share. `result` is the name of the JSON file, `checkpoints` the default ones."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument(
        "--checkpoints", type=_names, default=checkpoints, help="names of checkpoints, separated by commas"
    )
    found.add_argument(
        "--servers",
        type=_names,
        default=",".join(MAKERS),
        help="names of servers, separated by commas; duet@CHECKOUT is our engine from another checkout",
    )
    found.add_argument("--peers", type=Path, default=PEERS, help="the environment of the other servers")
    found.add_argument("--core", type=int, default=0, help="the core that all servers share, if taskset is installed")
    found.add_argument("--json", type=Path, default=RESULTS / result, help="write the figures to this file")
    return found


def _names(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def write(file: Path, arguments: argparse.Namespace, begun: float, found: Mapping[str, Any]) -> None:
    """Write the record of one run. `begun` is `time.monotonic()` at its start."""
    settings = {
        name: value for name, value in vars(arguments).items() if not isinstance(value, Path) and name != "core"
    }
    if "servers" in settings:
        settings["servers"] = [label(name) for name in settings["servers"]]
    record = {
        "machine": platform.machine(),
        "system": platform.system(),
        "pinned_to_one_core": bool(pinning(arguments.core)),
        "versions": {"duet": version("mlx-duet"), **peer_versions(arguments.peers)},
        "settings": settings,
        "run_seconds": round(time.monotonic() - begun),
        **found,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {file} after {record['run_seconds']} s")


def peer_versions(peers: Path) -> dict[str, str]:
    """Versions of the MLX packages in an environment, read from the names of their `dist-info` folders."""
    found = {}
    for folder in sorted(peers.glob("lib/python3*/site-packages/mlx*.dist-info")):
        name, _, number = folder.name.removesuffix(".dist-info").partition("-")
        found[name] = number
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A text table. The first column is aligned to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
