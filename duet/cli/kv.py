"""`duet kv`: look at, check and clear the KV cache. Works with nothing running; a running engine is asked about its models."""

from __future__ import annotations

import json
from typing import Any

import httpx
import typer

from duet.cli.failures import key_or_exit, reason
from duet.client import sync_client
from duet.keys import KEY_FILE
from duet.logs import printable
from duet.settings import Settings
from duet.sizes import readable
from engine.kvstore.index import Damaged, IndexBusy
from engine.kvstore.leases import FOLDER
from engine.kvstore.notes import read_about
from engine.kvstore.survey import clear as clear_directories
from engine.kvstore.survey import damaged_files, directories, report


def stats(settings: Settings, *, as_json: bool) -> int:
    """Returns 0, or 1 when a directory cannot be read."""
    found, unreadable = [], []
    for path in directories(settings.home / FOLDER):
        try:
            seen = report(path)
        except (Damaged, IndexBusy) as error:
            unreadable.append({"name": path.name, "problem": str(error)})
            continue
        found.append({"name": path.name, "model": seen.model, "in_use": seen.owned, "bytes": seen.contents.bytes,
                      "entries": seen.contents.entries, "written_today": seen.contents.written_today})  # fmt: skip
    workers = (_ask(settings, "GET") or {}).get("workers", {})
    shown = {
        "disk_bytes_cap": settings.engine.kv_disk_bytes,
        "directories": found,
        "unreadable": unreadable,
        "loaded": workers,
    }
    typer.echo(json.dumps(shown, indent=1) if as_json else "\n".join(map(printable, _lines(shown))))
    return 1 if unreadable else 0


def clear(settings: Settings, model: str | None) -> int:
    """A running engine clears the KV of its models, this process the rest. Returns 0, or 1 when that cannot be done."""
    answer = _ask(settings, "DELETE", **({"model": model} if model else {}))
    if answer is not None and "problem" in answer:
        typer.echo(printable(f"duet: {answer['problem']}"), err=True)
        return 1
    models = {str((read_about(path) or {}).get("model")) for path in directories(settings.home / FOLDER)}
    if answer is None and model is not None and model not in models:
        known = ", ".join(sorted(models)) or "none"
        typer.echo(printable(f"duet: there is no KV of {model}; there is of: {known}"), err=True)
        return 1
    removed = clear_directories(settings.home / FOLDER, model) + int((answer or {}).get("cleared_entries", 0))
    running = " and what loaded models held" if answer is not None else ""
    typer.echo(f"cleared {removed} entries{running}")
    return 0


def verify(settings: Settings) -> int:
    """Read every file. Returns 1 when one is damaged. To the engine a damaged file is a miss."""
    damaged = total = 0
    for path in directories(settings.home / FOLDER):
        try:
            total += report(path).contents.entries
        except (Damaged, IndexBusy) as error:
            typer.echo(printable(f"{path}: the index: {error}"))
            damaged += 1
        for file, cause in damaged_files(path):
            typer.echo(printable(f"{file}: {cause}"))
            damaged += 1
    typer.echo(f"{total} entries, {damaged} damaged")
    return 1 if damaged else 0


def _ask(settings: Settings, method: str, **query: str) -> dict[str, Any] | None:
    """The engine's answer; None when no engine answers."""
    if not (settings.home / KEY_FILE).exists():
        return None
    try:
        with sync_client(key_or_exit(settings.home), url=settings.engine_url, timeout=30.0) as client:
            answer = client.request(method, "/v1/admin/kv", params=query)
    except httpx.HTTPError:
        return None
    found: dict[str, Any] = answer.json() if answer.status_code == 200 else {"problem": reason(answer)}
    return found


def _lines(shown: dict[str, Any]) -> list[str]:
    lines = [f"{'model':32} {'on SSD':>10} {'entries':>8} {'today':>10}"]
    for item in shown["directories"]:
        use = "  in use" if item["in_use"] else ""
        lines.append(
            f"{item['model']:32} {readable(item['bytes']):>10} {item['entries']:>8} {readable(item['written_today']):>10}{use}"
        )
    lines += [f"{item['name']:32} unreadable: {item['problem']}" for item in shown["unreadable"]]
    total = sum(item["bytes"] for item in shown["directories"])
    lines.append(f"{readable(total)} of {readable(shown['disk_bytes_cap'])}")
    for model, item in shown["loaded"].items():
        off = f"; nothing goes to SSD: {item['off']}" if item.get("off") else ""
        lines.append(f"{model}: {readable(item.get('memory_bytes', 0))} in memory{off}")
    return lines
