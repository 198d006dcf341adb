"""`duet models`: which models are loaded, and which stay. It asks the running engine, and keeps nothing itself."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import httpx
import typer

from duet.cli.failures import failed, key_or_exit, reason
from duet.client import sync_client
from duet.logs import printable
from duet.settings import Settings
from duet.sizes import gigabytes

PATIENCE = httpx.Timeout(10.0, read=None)
"""A load may have to download the model first; the engine's log says so."""
LOOK = httpx.Timeout(10.0)
"""The engine answers a question about its state at once."""


def show(settings: Settings, *, as_json: bool) -> int:
    """Every model that is here or was asked for. Returns 0."""
    found = _ask(settings, "GET", "")
    typer.echo(json.dumps(found, indent=1) if as_json else "\n".join([memory_line(found), *table(found["models"])]))
    return 0


def act(settings: Settings, model: str, action: str, *, force: bool = False) -> int:
    """`load`, `unload`, `pin` or `unpin` one model, and print its state then. Returns 0."""
    found = _ask(settings, "POST", f"/{quote(model)}/{action}", **({"force": "true"} if force else {}))
    typer.echo("\n".join(table([found])))
    return 0


def memory_line(status: dict[str, Any]) -> str:
    """The memory that models hold and may hold, in one line."""
    line = f"memory: {gigabytes(status['charged_bytes'])} of {gigabytes(status['limit_bytes'])} for models"
    if status["limit_bytes"] < status["ceiling_bytes"]:
        line += f" ({gigabytes(status['ceiling_bytes'])} when other programs hold less)"
    if status["pressure"] != "normal":
        line += f"; the machine is short of memory ({status['pressure']})"
    return f"{line}; preset {status['preset']}"


def table(models: list[dict[str, Any]]) -> list[str]:
    """One line for each model: id, state, memory, requests, and why it stays loaded. Names are those of folders."""
    width = max([len(model["id"]) for model in models], default=0)
    return [printable(f"{model['id']:{width}}  {described(model)}") for model in models]


def described(model: dict[str, Any]) -> str:
    """A model's state in words."""
    parts = [f"{model['state']:11}"]
    if model["problem"] and not model["charged_bytes"]:
        return "  ".join([*parts, model["problem"]])
    if model["charged_bytes"]:
        held = f", holds {gigabytes(model['memory_bytes'])}" if model["memory_bytes"] is not None else ""
        parts.append(f"{gigabytes(model['charged_bytes'])} charged{held}")
    else:
        parts.append(f"needs about {gigabytes(model['estimate_bytes'])}")
    if model["running"] or model["waiting"]:
        parts.append(f"{model['running']} running, {model['waiting']} waiting")
    if model["pinned"]:
        parts.append("resident" if model["resident"] else "pinned")
    elif model["idle_seconds"] is not None and model["ttl_seconds"] is not None:
        parts.append(f"unloads in {max(0.0, model['ttl_seconds'] - model['idle_seconds']):.0f} s")
    if model["crashes"]:
        parts.append(f"{model['crashes']} crashes")
    if model["rests_seconds"]:
        parts.append(f"failed too often, rests {model['rests_seconds']:.0f} s")
    return "  ".join(parts)


def _ask(settings: Settings, method: str, path: str, **query: str) -> Any:
    """The engine's answer. Ends the command with the cause when there is none."""
    timeout = LOOK if method == "GET" else PATIENCE
    try:
        with sync_client(key_or_exit(settings.home), url=settings.engine_url, timeout=timeout) as client:
            answer = client.request(method, f"/v1/admin/models{path}", params=query)
    except httpx.HTTPError as error:
        cause = f"the engine does not answer at {settings.engine_url} ({type(error).__name__})"
        raise failed(f"{cause}: is `duet up` running?") from error
    if answer.status_code != 200:
        raise failed(reason(answer))
    return answer.json()
