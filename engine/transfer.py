"""Brings one file of the hub into the cache: resumed where it stopped, verified, and visible only when complete.

The cache has the hub library's layout (`blobs/<digest>`, and `snapshots/<commit>/<name>` pointing there), so all tools on the
machine share it. The transfer is our own: the library throws a partial file away when its call ends, and it may fetch from
hosts other than the configured one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx

from duet.errors import Unavailable

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
TRIES_WITHOUT_A_BYTE = 5
LOCK_POLL_SECONDS = 0.2
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_SYMLINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class Stopped(Exception):
    """The service ends. What has arrived is kept."""


class _Damaged(Exception):
    """What has arrived cannot be part of the file."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repo at one commit.

    `digest` is the hash that its bytes must have, and its name among the blobs: sha256 for a large file, git's blob id (sha1 with
    a header, https://git-scm.com/book/en/v2/Git-Internals-Git-Objects) for any other. Raises `ValueError` for a name or digest
    that would lead out of the cache.
    """

    name: str
    size: int
    digest: str

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.name).parts
        if not parts or self.name.startswith("/") or ".." in parts or "\\" in self.name or "\0" in self.name:
            raise ValueError(f"the hub lists a file of the name {self.name!r}")
        if not _DIGEST.fullmatch(self.digest) or self.size < 0:
            raise ValueError(f"the hub tells no digest of {self.name}")


class Transfer:
    """Fetches the files of one repo one after another, in one thread. Any thread may set `stop`.

    `folder` is the repo's folder in the cache. `report` gets every change of the number of bytes here; it may be negative.
    """

    def __init__(
        self,
        client: httpx.Client,
        folder: Path,
        commit: str,
        *,
        stop: threading.Event,
        report: Callable[[int], None],
        retry_seconds: float,
    ) -> None:
        self._client, self._stop, self._report, self._retry_seconds = client, stop, report, retry_seconds
        self._blobs, self._snapshot = folder / "blobs", folder / "snapshots" / commit
        self._locks = folder.parent / ".locks" / folder.name

    def bytes_here(self, file: RemoteFile) -> int:
        """Bytes of a file that are here already."""
        if self._is_placed(file):
            return file.size
        blob = self._blobs / file.digest
        return file.size if _size(blob) == file.size else min(file.size, _size(self._partial(file)) or 0)

    def fetch(self, url: str, file: RemoteFile) -> None:
        """Bring a file into the snapshot. A file that arrives damaged is fetched once more from its beginning.

        Raises `Unavailable`, `Stopped`, and `OSError` of the disk. When the disk is full, the partial file is removed.
        """
        if self._is_placed(file):
            return
        self._blobs.mkdir(parents=True, exist_ok=True)
        blob, partial = self._blobs / file.digest, self._partial(file)
        with self._locked(file):
            if _size(blob) != file.size:
                try:
                    self._fetch_verified(url, file, partial)
                except OSError as error:
                    if error.errno in NO_ROOM:
                        partial.unlink(missing_ok=True)
                    raise
                partial.replace(blob)
            _place(blob, self._snapshot / file.name)

    @contextmanager
    def _locked(self, file: RemoteFile) -> Iterator[None]:
        """At most one process writes a file: this is the lock that the hub's library takes too."""
        self._locks.mkdir(parents=True, exist_ok=True)
        with (self._locks / f"{file.digest}.lock").open("a") as handle:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if self._stop.wait(LOCK_POLL_SECONDS):
                        raise Stopped from None
            yield

    def _is_placed(self, file: RemoteFile) -> bool:
        return _size(self._snapshot / file.name) == file.size

    def _partial(self, file: RemoteFile) -> Path:
        return self._blobs / f"{file.digest}.incomplete"

    def _fetch_verified(self, url: str, file: RemoteFile, partial: Path) -> None:
        for _ in range(2):
            try:
                self._receive(url, file, partial)
            except _Damaged as damage:
                cause = str(damage)
            else:
                if digest(partial, len(file.digest)) == file.digest:
                    return
                cause = "its digest is another"
            logger.warning("damaged download", extra={"action": "download_damaged", "file": file.name, "cause": cause})
            self._report(-(_size(partial) or 0))
            partial.unlink()
        raise Unavailable(f"{file.name} arrived damaged twice ({cause}); ask again later", param="model")

    def _receive(self, url: str, file: RemoteFile, partial: Path) -> None:
        """Fetch until all bytes are here, over as many connections as it takes, as long as connections bring something."""
        partial.touch()
        idle = 0
        while (have := partial.stat().st_size) < file.size:
            cause: Exception | None = None
            try:
                self._receive_some(url, file, partial, have)
            except httpx.HTTPError as error:
                cause = error
            idle = 0 if partial.stat().st_size > have else idle + 1
            if idle == TRIES_WITHOUT_A_BYTE:
                reason = _reason(cause) if cause else "the answers were empty"
                raise Unavailable(
                    f"the download of {file.name} stopped after {have} of {file.size} bytes ({reason}); they are kept: "
                    "ask again to go on",
                    param="model",
                ) from cause
            if cause and self._stop.wait(self._retry_seconds * idle):
                raise Stopped
        if partial.stat().st_size > file.size:
            raise _Damaged("it is too long")

    def _receive_some(self, url: str, file: RemoteFile, partial: Path, have: int) -> None:
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
        with self._client.stream("GET", url, headers=headers) as response:
            if response.status_code in (401, 403):
                raise Unavailable(
                    f"the hub refuses {file.name} ({response.status_code}): accept the model's terms there and set HF_TOKEN",
                    param="model",
                )
            response.raise_for_status()
            resumes = response.status_code == 206
            if resumes and not response.headers.get("content-range", "").startswith(f"bytes {have}-"):
                raise _Damaged("the hub sent another range than the one asked for")
            if have and not resumes:
                self._report(-have)
            with partial.open("ab" if resumes else "wb") as handle:
                for block in response.iter_raw(BLOCK_BYTES):
                    if self._stop.is_set():
                        raise Stopped
                    handle.write(block)
                    self._report(len(block))
                    if handle.tell() > file.size:
                        raise _Damaged("it is too long")


def digest(path: Path, length: int) -> str:
    """A file's digest in hexadecimal: sha256 for `length` 64, git's blob id for 40."""
    algorithm = hashlib.sha256() if length == 64 else hashlib.sha1(usedforsecurity=False)
    if length == 40:
        algorithm.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as handle:
        while block := handle.read(BLOCK_BYTES):
            algorithm.update(block)
    return algorithm.hexdigest()


def _reason(error: Exception) -> str:
    """A cause without its URL: a redirected URL is signed, and must not be shown."""
    return f"HTTP {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else type(error).__name__


def _size(path: Path) -> int | None:
    """Bytes of a file, links followed; None when there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _place(blob: Path, name: Path) -> None:
    """Make `name` the blob, in one step. On a file system without links the blob itself is moved there."""
    name.parent.mkdir(parents=True, exist_ok=True)
    fresh = name.with_name(f".{name.name}.new")
    fresh.unlink(missing_ok=True)
    try:
        fresh.symlink_to(os.path.relpath(blob, name.parent))
    except OSError as error:
        if error.errno not in _NO_SYMLINKS:
            raise
        blob.replace(name)
    else:
        fresh.replace(name)
