"""The settings of this home, for a verb of the command."""

from __future__ import annotations

from typing import Any

import typer

from duet.settings import EXIT_CONFIG, Settings, load_settings, unknown_variables
from duet.sources import SettingsError


def settings_or_exit(**overrides: Any) -> Settings:
    """The settings; exit code 78 with the key's name when one is wrong."""
    for sentence in unknown_variables():
        typer.echo(f"duet: {sentence}", err=True)
    try:
        return load_settings(**overrides)
    except SettingsError as error:
        typer.echo(f"duet: {error}", err=True)
        raise typer.Exit(EXIT_CONFIG) from error
