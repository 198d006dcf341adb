"""The API key of both services: a file that its owner alone can read. Needs no web framework, since clients import it."""

from __future__ import annotations

import codecs
import logging
import os
import secrets
import stat
import time
from pathlib import Path

from duet.errors import DuetError

logger = logging.getLogger(__name__)

KEY_FILE = "api_key"


MAX_KEY_BYTES = 4096


def api_key(home: Path) -> str:
    """The API key of both services, from `home/api_key`; made on first use with mode 0600, in a folder of mode 0700.

    Raises `DuetError` when the file holds no key, and `OSError`.
    """
    path = home / KEY_FILE
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    for _ in range(100):
        try:
            found = _read(path)
        except FileNotFoundError:
            if path.is_symlink():
                raise DuetError(f"{path} is a link to a file that does not exist; {_REMEDY}") from None
            _create_key(path)
            continue
        if found.strip():
            return _checked(found.strip(), path)
        time.sleep(0.01)  # another process has created it and not yet written it
    raise DuetError(f"{path} is empty; {_REMEDY}")


_REMEDY = "delete it, and a new key is made at the next start (DUET_HOME says where it is)"


def _read(path: Path) -> bytes:
    # O_NONBLOCK: a pipe in its place must not hold us up.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        kind = os.fstat(handle)
        if not stat.S_ISREG(kind.st_mode):
            raise DuetError(f"{path} is no file; {_REMEDY}")
        if kind.st_uid != os.geteuid():
            raise DuetError(f"{path} belongs to another user: run this as that user, or set DUET_HOME to your own home")
        return os.read(handle, MAX_KEY_BYTES + 1)
    finally:
        os.close(handle)


def _checked(key: bytes, path: Path) -> str:
    """A key that fits into a header."""
    key = key.removeprefix(codecs.BOM_UTF8)
    if len(key) > MAX_KEY_BYTES or not key.isascii() or any(byte <= 0x20 or byte == 0x7F for byte in key):
        raise DuetError(f"{path} holds no key, which is one word of printable ASCII on one line; {_REMEDY}")
    return key.decode()


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
