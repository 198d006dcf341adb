"""`duet up`, `status`, `repair`, `key`, `config` and `version`: the stack as a whole."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from duet.cli.groups.settings import settings_or_exit


def up(
    embedded: Annotated[bool, typer.Option("--embedded", help="Use the embedded demonstration models.")] = False,
    engine_port: Annotated[int | None, typer.Option(help="Port of the engine.", min=1, max=65535)] = None,
    router_port: Annotated[int | None, typer.Option(help="Port of the router.", min=1, max=65535)] = None,
) -> None:
    """Run engine, router and meeting worker in the foreground; Ctrl-C stops all.

    Example: duet up --embedded
    """
    from duet.cli.up import run

    overrides: dict[str, Any] = {"embedded": True} if embedded else {}
    if engine_port is not None:
        overrides["engine"] = {"port": engine_port}
    if router_port is not None:
        overrides["router"] = {"port": router_port}
    raise typer.Exit(run(settings_or_exit(**overrides)))


def status(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Say what runs, which models there are and where they are. Exit code 1 when a service is down.

    Example: duet status --json
    """
    from duet.cli.status import run

    raise typer.Exit(run(settings_or_exit(), as_json=as_json))


def repair() -> None:
    """Set a damaged store of meetings aside. The meetings are kept: they are found in their folders and queued again.

    Example: duet repair
    """
    from duet.cli.repair import run

    run(settings_or_exit())


def key(path: Annotated[bool, typer.Option("--path", help="Print the file, not the key.")] = False) -> None:
    """Print the API key of both services (made on first use).

    Example: export OPENAI_API_KEY=$(duet key)
    """
    from duet.cli.failures import key_or_exit
    from duet.keys import KEY_FILE

    home = settings_or_exit().home
    value = key_or_exit(home)
    typer.echo(str(home / KEY_FILE) if path else value)


def config() -> None:
    """Print every setting and where it comes from; what is printed can be used as config.toml.

    Example: DUET_ENGINE__PORT=9000 duet config
    """
    from duet.cli.config import lines

    for line in lines(settings_or_exit()):
        typer.echo(line)


def version() -> None:
    """Print the version."""
    import importlib.metadata

    typer.echo(importlib.metadata.version("mlx-duet"))
