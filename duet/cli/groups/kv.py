"""`duet kv`: what is kept of prompts that were computed."""

from __future__ import annotations

from typing import Annotated

import typer

from duet.cli.groups.settings import settings_or_exit

app = typer.Typer(
    help="The KV cache: prompts that were computed once and are kept, in memory and on SSD.", no_args_is_help=True
)


@app.command(name="stats")
def kv_stats(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Say what is kept, by model, and what loaded models hold in memory.

    Example: duet kv stats
    """
    from duet.cli.kv import stats

    raise typer.Exit(stats(settings_or_exit(), as_json=as_json))


@app.command(name="clear")
def kv_clear(model: Annotated[str | None, typer.Option(help="One model's id; default: all.")] = None) -> None:
    """Forget what is kept, of one model or of all.

    Example: duet kv clear --model duet-tiny-chat
    """
    from duet.cli.kv import clear

    raise typer.Exit(clear(settings_or_exit(), model))


@app.command(name="verify")
def kv_verify() -> None:
    """Read every file and name the damaged ones. Exit code 1 when there are any.

    Example: duet kv verify
    """
    from duet.cli.kv import verify

    raise typer.Exit(verify(settings_or_exit()))
