"""`duet service`: Duet as a service of the system."""

from __future__ import annotations

from typing import Annotated

import typer

from duet.cli.groups.settings import settings_or_exit

app = typer.Typer(help="Run Duet at login: launchd on macOS, systemd user units on Linux.", no_args_is_help=True)


@app.command()
def install(
    embedded: Annotated[bool, typer.Option("--embedded", help="Use the embedded demonstration models.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be written and run.")] = False,
) -> None:
    """Write and load the services: start at login, restart after a crash, logs in $DUET_HOME/logs.

    Example: duet service install --embedded
    """
    from launchd.installer import install as run

    overrides = {"embedded": True} if embedded else {}
    raise typer.Exit(run(settings_or_exit(**overrides), dry_run=dry_run))


@app.command(name="status")
def service_status() -> None:
    """Say whether the services are installed and running. Exit code 1 when one is not.

    Example: duet service status
    """
    from launchd.installer import status as run

    raise typer.Exit(run(settings_or_exit()))


@app.command()
def uninstall(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed and run.")] = False,
) -> None:
    """Stop and remove the services. Data in $DUET_HOME stays.

    Example: duet service uninstall
    """
    from launchd.installer import uninstall as run

    raise typer.Exit(run(settings_or_exit(), dry_run=dry_run))
