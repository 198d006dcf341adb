"""`duet models`: which models are loaded, and which stay."""

from __future__ import annotations

from typing import Annotated

import typer

from duet.cli.groups.settings import settings_or_exit

app = typer.Typer(help="Which models are loaded, and which stay. The engine must be running.", no_args_is_help=True)


_Model = Annotated[str, typer.Argument(help="Id, alias, role or repo id.")]


@app.command(name="list")
def models_list(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Say which models there are, which are loaded, what they hold, and what is left.

    Example: duet models list
    """
    from duet.cli.models import show

    raise typer.Exit(show(settings_or_exit(), as_json=as_json))


@app.command(name="load")
def models_load(model: _Model) -> None:
    """Load a model now, downloading it if need be; other idle models may have to leave.

    Example: duet models load qwen3-14b
    """
    from duet.cli.models import act

    raise typer.Exit(act(settings_or_exit(), model, "load"))


@app.command(name="unload")
def models_unload(
    model: _Model, force: Annotated[bool, typer.Option("--force", help="Also while it answers: requests fail.")] = False
) -> None:
    """Unload a model and get its memory back, pinned or not.

    Example: duet models unload qwen3-14b
    """
    from duet.cli.models import act

    raise typer.Exit(act(settings_or_exit(), model, "unload", force=force))


@app.command(name="pin")
def models_pin(model: _Model) -> None:
    """Let a model stay once it is loaded, until the engine ends.

    Example: duet models pin qwen3-14b
    """
    from duet.cli.models import act

    raise typer.Exit(act(settings_or_exit(), model, "pin"))


@app.command(name="unpin")
def models_unpin(model: _Model) -> None:
    """Let a model go like any other.

    Example: duet models unpin qwen3-14b
    """
    from duet.cli.models import act

    raise typer.Exit(act(settings_or_exit(), model, "unpin"))
