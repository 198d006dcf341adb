"""Uploads on disk: bounded, private, and removed when the request ends, however it ends."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from duet.errors import PayloadTooLarge, Unavailable
from speech.decode import InvalidAudio

PIECE_BYTES = 1 << 20


class Readable(Protocol):
    async def read(self, size: int = -1, /) -> bytes: ...


class Spool:
    """A folder of mode 0700 for current uploads. Owned by the router; one router per home."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def open(self) -> None:
        """Make the folder, and remove what a killed process left."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700, parents=True)

    @asynccontextmanager
    async def take(self, upload: Readable) -> AsyncIterator[Path]:
        """The upload as a file in its own folder. The folder with all its files is removed when the block ends.

        Raises `PayloadTooLarge`, `InvalidAudio` when the upload is empty, `Unavailable` when it cannot be written.
        """
        folder = self._folder / secrets.token_hex(16)
        path = folder / "upload"
        try:
            try:
                folder.mkdir(mode=0o700)
                size = await self._copy(upload, path)
            except OSError as error:
                raise Unavailable(f"the upload cannot be kept on disk: {error.strerror}") from error
            if size == 0:
                raise InvalidAudio("the file is empty")
            yield path
        finally:
            # The thread of a cancelled request may still write there; its next file cannot be created.
            shutil.rmtree(folder, ignore_errors=True)

    async def _copy(self, upload: Readable, path: Path) -> int:
        size = 0
        with path.open("wb") as file:
            path.chmod(0o600)
            while piece := await upload.read(PIECE_BYTES):
                size += len(piece)
                if size > self._max_bytes:
                    raise PayloadTooLarge(f"the file is larger than {self._max_bytes} bytes", param="file")
                await asyncio.to_thread(file.write, piece)
        return size
