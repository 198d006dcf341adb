"""`duet status`: asks each service how it is."""

from __future__ import annotations

import json
from typing import Any

import httpx
import typer

from duet.cli.failures import key_or_exit, reason
from duet.cli.models import described, memory_line
from duet.client import sync_client
from duet.keys import KEY_FILE
from duet.logs import printable
from duet.programs import addresses
from duet.settings import Settings
from duet.supervise.board import ProgramState, read_board, resting


def run(settings: Settings, *, as_json: bool) -> int:
    """Returns 0 when both services are up and ready, and no program of `duet up` rests; else 1."""
    # Looking must not make a key. Without one, nothing of ours has run here yet.
    known = (settings.home / KEY_FILE).exists()
    with sync_client(key_or_exit(settings.home) if known else None, timeout=5.0) as client:
        found = {name: ask(client, address.url) for name, address in addresses(settings).items()}
        if found["engine"]["ready"]:
            found["engine"]["pool"] = ask_pool(client, settings.engine_url)
    board = read_board(settings.home)
    rests = {name: resting(name, state) for name, state in board.items() if state.state == "resting"}
    if as_json:
        typer.echo(json.dumps({**found, "programs": {name: vars_of(state) for name, state in board.items()}}, indent=1))
    else:
        lines = [line for name, service in found.items() for line in shown(name, service, rests.get(name, ""))]
        lines += [f"{name:7} {state.state}" for name, state in board.items() if name not in found]
        lines += [f"        {sentence}" for name, sentence in rests.items() if name not in found]
        typer.echo("\n".join(printable(line) for line in lines))
    return 0 if not rests and all(service["ready"] for service in found.values()) else 1


def vars_of(state: ProgramState) -> dict[str, Any]:
    return {"state": state.state, "why": state.why, "again_in_seconds": state.again_in_seconds, "ended": state.ended}


def ask(client: httpx.Client, url: str) -> dict[str, Any]:
    """One service: whether it is up and ready, why not, and its models."""
    try:
        up = client.get(f"{url}/health").status_code == 200
        ready = client.get(f"{url}/ready")
        models = client.get(f"{url}/v1/models")
    except httpx.HTTPError as error:
        return {
            "url": url,
            "up": False,
            "ready": False,
            "problem": f"does not answer ({type(error).__name__})",
            "models": [],
        }
    problem = ""
    if ready.status_code != 200:
        problem = reason(ready)
    elif models.status_code != 200:
        problem = reason(models)
    listed = models.json()["data"] if models.status_code == 200 and not problem else []
    return {
        "url": url,
        "up": up,
        "ready": ready.status_code == 200 and not problem,
        "problem": problem,
        "models": listed,
    }


def ask_pool(client: httpx.Client, url: str) -> dict[str, Any] | None:
    """Memory and models of the engine's pool; None when another kind of engine answers, which has no pool."""
    try:
        answer = client.get(f"{url}/v1/admin/models")
    except httpx.HTTPError:
        return None
    return answer.json() if answer.status_code == 200 else None


def shown(name: str, service: dict[str, Any], rests: str = "") -> list[str]:
    state = "ready" if service["ready"] else "up, not ready" if service["up"] else "down"
    lines = [f"{name:7} {state:14} {service['url']}"]
    if said := rests or service["problem"]:
        lines.append(f"        {said}")
    pool = service.get("pool")
    places = {place["id"]: described(place) for place in pool["models"]} if pool else {}
    if pool:
        lines.append(f"        {memory_line(pool)}")
    for model in service["models"]:
        extra = model.get("duet", {})
        where = places.get(model["id"]) or extra.get("state") or ("ready" if extra.get("ready") else "not ready")
        if extra.get("state") != "absent":
            lines.append(f"        {model['id']:32} {where}{' (demonstration)' if extra.get('demonstration') else ''}")
    return lines
