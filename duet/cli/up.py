"""`duet up`: everything in the foreground."""

from __future__ import annotations

import asyncio
import socket

import httpx
import typer

from duet.cli.failures import key_or_exit
from duet.keys import KEY_FILE
from duet.logs import configure_logs
from duet.programs import PROGRAMS, addresses
from duet.settings import Settings, to_environment
from duet.supervise.programs import Supervised, run_programs

READY_TIMEOUT_SECONDS = 60.0


def programs(settings: Settings) -> list[Supervised]:
    """All programs, each with the settings of this one."""
    environment = to_environment(settings)
    return [Supervised(program.name, program.argv, environment) for program in PROGRAMS]


def run(settings: Settings) -> int:
    """Returns the exit code: 0 after Ctrl-C, 1 when a port is taken or a program cannot start."""
    configure_logs(settings.log_level, "up")
    for name, (host, port, _) in addresses(settings).items():
        if problem := _port_problem(host, port):
            typer.echo(f"duet: the {name} cannot listen on {host}:{port}: {problem}. Stop what uses it, or set another "
                       f"port with --{name}-port or {name}.port in {settings.home / 'config.toml'}.", err=True)  # fmt: skip
            return 1
    key = key_or_exit(settings.home)
    return asyncio.run(run_programs(programs(settings), ready=lambda: _greet(settings, key)))


def _port_problem(host: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


async def _greet(settings: Settings, key: str) -> None:
    """Wait until the services answer, then print where they are and how to begin."""
    async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client:
        deadline = asyncio.get_running_loop().time() + READY_TIMEOUT_SECONDS
        for _, _, url in addresses(settings).values():
            while not await _answers(client, f"{url}/health"):
                if asyncio.get_running_loop().time() > deadline:
                    typer.echo(
                        f"duet: {url} does not answer after {READY_TIMEOUT_SECONDS:.0f} s; the log above says why",
                        err=True,
                    )
                    return
                await asyncio.sleep(0.1)
        answer = await client.get(f"{settings.engine_url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    answer.raise_for_status()
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
