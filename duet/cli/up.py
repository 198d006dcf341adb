"""`duet up`: everything in the foreground."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path

import httpx
import typer

from duet.claims import UP, claim, holder, wait_for_orphans
from duet.cli.failures import failed, key_or_exit
from duet.errors import DuetError, Unavailable
from duet.keys import KEY_FILE
from duet.logs import configure_logs
from duet.programs import PROGRAMS, addresses
from duet.service import prepare
from duet.settings import Settings, to_environment
from duet.supervise.board import Board, ProgramState, resting
from duet.supervise.programs import Supervised, run_programs

READY_TIMEOUT_SECONDS = 60.0


def programs(settings: Settings) -> list[Supervised]:
    """All programs, each with the settings of this one."""
    environment = to_environment(settings)
    return [Supervised(program.name, program.argv, environment) for program in PROGRAMS]


def run(settings: Settings) -> int:
    """Returns the exit code: 0 after Ctrl-C, 1 when a port or the home is taken, or when no program can run."""
    configure_logs(settings.log_level, "up")
    ports = {name: address.port for name, address in addresses(settings).items()}
    try:
        prepare(settings)
        if not _left_by_a_killed_one(settings.home):
            _check_ports(settings)
        wait_for_orphans(settings.home, ports)
        _check_ports(settings)
        held = claim(settings.home, UP, ports)
    except DuetError as error:
        raise failed(error.message) from error
    try:
        key = key_or_exit(settings.home)
        board = Board(settings.home)
        code = asyncio.run(
            run_programs(programs(settings), board=board, ready=lambda: _greet(settings, key, board.states))
        )
        if code:
            said = "; ".join(f"{name}: {state.why}" for name, state in board.states.items())
            typer.echo(f"duet: nothing can run ({said}); the log above says more", err=True)
        return code
    finally:
        held.release()


def _left_by_a_killed_one(home: Path) -> bool:
    """Whether programs of a `duet up` that was killed are still ending: they have the ports for a moment."""
    return holder(home, UP) is None and any(
        found is not None and found.supervised for found in (holder(home, program.name) for program in PROGRAMS)
    )


def _check_ports(settings: Settings) -> None:
    """Raises `Unavailable` for a port that another program has: a mistake that is told at once, before anything starts."""
    for name, (host, port, _) in addresses(settings).items():
        if problem := _port_problem(host, port):
            raise Unavailable(
                f"the {name} cannot listen on {host}:{port}: {problem}. Stop what uses it, or set another port with "
                f"--{name}-port or {name}.port in {settings.home / 'config.toml'}."
            )


def _port_problem(host: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


async def _greet(settings: Settings, key: str, states: Mapping[str, ProgramState]) -> None:
    """Wait until the services answer, then print where they are and how to begin. What does not answer is said."""
    async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client:
        deadline = asyncio.get_running_loop().time() + READY_TIMEOUT_SECONDS
        for name, (_, _, url) in addresses(settings).items():
            while not await _answers(client, f"{url}/health"):
                rests = name in states and states[name].state == "resting"
                if rests or asyncio.get_running_loop().time() > deadline:
                    why = resting(name, states[name]) if rests else f"{url} does not answer; the log above says why"
                    typer.echo(f"duet: {why}", err=True)
                    break
                await asyncio.sleep(0.1)
        try:
            answer = await client.get(f"{settings.engine_url}/v1/models", headers={"Authorization": f"Bearer {key}"})
            answer.raise_for_status()
        except httpx.HTTPError:
            return  # said above
    present = [model["id"] for model in answer.json()["data"] if model["duet"]["state"] != "absent"]
    typer.echo(greeting(settings, present))


async def _answers(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).status_code == 200
    except httpx.HTTPError:
        return False


def greeting(settings: Settings, present: list[str]) -> str:
    """The text that a user needs for a first request."""
    first = present[0] if present else "MODEL"
    lines = [
        "",
        f"  engine  {settings.engine_url}/v1   (docs: {settings.engine_url}/docs)",
        f"  router  {settings.router_url}/v1   (docs: {settings.router_url}/docs)",
        f"  key     {settings.home / KEY_FILE}",
        f"  models  {', '.join(present) or 'none on this machine yet'}",
        "",
    ]
    if not present:
        lines += [
            "  No model yet: name one of the hub (owner/name) in a request and it is downloaded then, put folders into a",
            "  directory of engine.model_dirs, or start with --embedded to try the small models that come with Duet.",
            "",
        ]
    lines += [
        f'  curl {settings.engine_url}/v1/chat/completions -H "Authorization: Bearer $(duet key)" \\',
        "    -H 'Content-Type: application/json' \\",
        f'    -d \'{{"model": "{first}", "messages": [{{"role": "user", "content": "Hello"}}]}}\'',
        "",
    ]
    return "\n".join(lines)
