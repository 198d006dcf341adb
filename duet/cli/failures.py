"""How a command of ours fails: one line on standard error, and exit code 1."""

from __future__ import annotations

from pathlib import Path

import httpx
import typer

from duet.client import Refused
from duet.errors import DuetError
from duet.keys import KEY_FILE, api_key
from duet.logs import printable


def failed(message: str) -> typer.Exit:
    """Print the message, and return the exit for the caller to raise."""
    typer.echo(printable(f"duet: {message}"), err=True)
    return typer.Exit(1)


def key_or_exit(home: Path) -> str:
    """The API key, made if there is none yet."""
    try:
        return api_key(home)
    except DuetError as error:
        raise failed(error.message) from error
    except OSError as error:
        raise failed(f"{home / KEY_FILE}: {error.strerror} (DUET_HOME says where it is)") from error


def reason(response: httpx.Response) -> str:
    """Why a request failed, in the service's words; the HTTP status if another program answered."""
    elsewhere = f"{response.url} answers with HTTP status {response.status_code}: is it another program's port?"
    return Refused(response).said or elsewhere
