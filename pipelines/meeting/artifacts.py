"""Results of stages as files, by content key."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec


class Artifacts:
    """Results keyed by stage, part, inputs and parameters: a step that runs again finds what it made before.

    Invariant: a file under its key is complete (written elsewhere, synced, renamed).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def key(self, stage: str, part: str, *inputs: Any) -> str:
        """`stage-part-hash`. Other inputs or parameters give another key, so no stale result is ever read."""
        digest = hashlib.sha256(msgspec.json.encode([stage, part, *inputs], order="sorted")).hexdigest()
        return f"{stage}-{part}-{digest[:20]}"

    def path(self, key: str, suffix: str = ".json") -> Path:
        return self._folder / f"{key}{suffix}"

    def read(self, key: str, kind: Any) -> Any:
        """The value under `key` as `kind`; None when there is none."""
        try:
            return msgspec.json.decode(self.path(key).read_bytes(), type=kind)
        except FileNotFoundError:
            return None

    def write(self, key: str, value: Any) -> None:
        write_atomically(self.path(key), msgspec.json.encode(value))

    async def make_file(self, key: str, suffix: str, make: Callable[[Path], Awaitable[None]]) -> Path:
        """The file under `key`. If it does not exist, `make` writes it under a temporary name first."""
        target = self.path(key, suffix)
        if not target.exists():
            temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
            try:
                await make(temporary)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
        return target


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Readers see the old content or the new one, even after a crash. `durable`: synced to disk before it appears."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
