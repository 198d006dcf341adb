"""One executor id for each living worker. A file lock holds the id, and the system frees the lock when the process dies. So no
heartbeat is needed on one machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

MAX_EXECUTORS = 64


def claim(root: Path) -> tuple[str, IO[str]]:
    """The first free executor id, and the file whose lock holds it until it is closed."""
    for number in range(MAX_EXECUTORS):
        file = (root / f"executor-{number}.lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        file.write(str(os.getpid()))
        file.flush()
        return f"executor-{number}", file
    raise RuntimeError(f"{MAX_EXECUTORS} meeting workers are running already")


@contextlib.contextmanager
def if_dead(root: Path, executor: str) -> Iterator[bool]:
    """Whether no living worker has this id. If so, its lock is ours within the block, and no worker can start under the id."""
    with (root / f"{executor}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
