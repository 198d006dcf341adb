"""The API key of both services: a file that its owner alone can read. Needs no web framework, since clients import it."""

from __future__ import annotations

import logging
import os
import secrets
import time
from pathlib import Path

from duet.errors import DuetError

logger = logging.getLogger(__name__)

KEY_FILE = "api_key"


def api_key(home: Path) -> str:
    """The API key of both services, from `home/api_key`; made on first use with mode 0600, in a folder of mode 0700."""
    path = home / KEY_FILE
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    for _ in range(100):
        try:
            key = path.read_text().strip()
        except FileNotFoundError:
            _create_key(path)
            continue
        if key:
            return key
        time.sleep(0.01)  # another process has created it and not yet written it
    raise DuetError(f"{path} is empty: delete it and a new key is made at the next start")


def _create_key(path: Path) -> None:
    # Written under another name and then linked: of two services that start together one wins, and neither reads half a key.
    temporary = path.with_name(f".{KEY_FILE}.{os.getpid()}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(f"duet-{secrets.token_urlsafe(32)}\n")
        try:
            os.link(temporary, path)
        except FileExistsError:
            logger.debug("another process made the key first")
    finally:
        temporary.unlink()
