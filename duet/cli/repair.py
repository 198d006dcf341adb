"""`duet repair`: give up a store of meetings that is damaged."""

from __future__ import annotations

import typer

from duet.cli.failures import failed
from duet.errors import DuetError
from duet.settings import Settings
from pipelines.jobs.store import jobs_folder, set_aside


def run(settings: Settings) -> None:
    try:
        moved = set_aside(settings)
    except DuetError as error:
        raise failed(error.message) from error
    if moved is None:
        typer.echo("the store of meetings is whole: nothing was changed")
        return
    there = jobs_folder(settings)
    kept = sum(path.name.isalnum() for path in there.iterdir()) if there.is_dir() else 0
    typer.echo(f"set aside as {moved}; a new store is made at once if Duet runs, and else at its next start")
    typer.echo(f"meetings kept: {kept}. They are queued again; what they finished is not done again.")
