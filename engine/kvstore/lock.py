"""Who owns a directory of KV: the process that holds the lock on its file `lock`."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path


class Owned(Exception):
    """Another process holds the lock."""


class Unusable(Exception):
    """Nothing can be kept here: the disk cannot be read or written. The message says why."""


class Lock:
    """`flock` on a file: the system frees it when the process ends, however it ends. Raises `Owned` when another process has
    it, `Unusable` when it cannot be taken at all."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unusable(f"{folder} cannot be used: {error}") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._handle)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise Owned(f"another process uses {folder}") from error
            raise Unusable(f"{folder} cannot be locked: {error}") from error

    def release(self) -> None:
        os.close(self._handle)


def is_owned(folder: Path) -> bool:
    """Whether a process holds the lock of a directory now. False also when that cannot be told."""
    try:
        Lock(folder).release()
    except Owned:
        return True
    except Unusable:
        return False
    return False
