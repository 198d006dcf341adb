"""A folder for what requests bring: private, below `$DUET_HOME/tmp`, and emptied as each request ends, however it ends.

The system's temporary folder is none: it is small where it lies in memory, and other users can list it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from duet.errors import DiskFull
from duet.home import own_folder, remove_tree

logger = logging.getLogger(__name__)

PRIVATE = 0o700
SMALL_BYTES = 4 << 20


class Spool:
    """Owned by one service; one service of a kind per home. No file in it may be larger than `max_bytes`."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder, self.max_bytes = folder, max_bytes

    def open(self) -> None:
        """Make the folder, and remove what a killed process left. A link in its place is removed, not what it leads to.

        If it cannot be made, the log says so and the service goes on: only uploads need it, and each of them tries again.
        """
        try:
            own_folder(self._folder.parent.parent, self._folder.parent.name)  # before anything is deleted below it
            remove_tree(self._folder)
            self._make()
        except OSError as error:
            logger.error(  # noqa: TRY400 - the cause is in the line
                "no upload can be taken: %s", error, extra={"action": "spool_unusable"}
            )

    @asynccontextmanager
    async def room(self) -> AsyncIterator[Path]:
        """A folder of its own for one request. It is removed with all its files when the block ends. Raises `DiskFull`."""
        room = self._folder / secrets.token_hex(16)
        try:
            try:
                self._make()
                room.mkdir(mode=PRIVATE)
            except OSError as error:
                raise disk_full(error) from error
            yield room
        finally:
            # The thread of a cancelled request may still write there; its next file cannot be created.
            if _is_small(room):
                shutil.rmtree(room, ignore_errors=True)
            else:
                await asyncio.to_thread(shutil.rmtree, room, ignore_errors=True)

    def _make(self) -> None:
        own_folder(self._folder.parent.parent, self._folder.parent.name, self._folder.name)


def _is_small(room: Path) -> bool:
    """Whether it is removed faster than a thread has its turn. A folder in it may hold anything."""
    try:
        return all(path.is_file() and path.stat().st_size <= SMALL_BYTES for path in room.iterdir())
    except OSError:
        return False


def disk_full(error: OSError) -> DiskFull:
    """What the client is told when its upload cannot be written."""
    return DiskFull(
        f"the upload cannot be kept in $DUET_HOME/tmp: {error.strerror}; free space on that disk and send it again",
        param="file",
    )
