"""Models from the hub: fetched once, resumed after an interruption, verified, and served only when complete.

The files lie in the hub library's own cache, which all tools on the machine share. config.json is fetched last: no tool takes a
folder without it for a model, so an unfinished download is never mistaken for one.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from duet.errors import DuetError, ModelNotFound, Unavailable
from engine.folders.reading import Problem, read_bytes, read_object
from engine.naming import is_repo_id
from engine.transfer import NO_ROOM, RemoteFile, Stopped, Transfer

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
WANTED = (".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken")
"""The endings of files that a model needs. Pickled weights (.bin, .pt) are never fetched: loading them runs their code."""
UNWANTED = (".", "onnx/", "original/", "openvino/", "consolidated.")
"""Names that begin like this hold the same weights for other programs."""
SPARE_BYTES = 1 << 30
"""Space that a download leaves free on the disk."""
AT_ONCE = 4
"""Downloads at the same time; further ones wait. They have threads of their own, so a slow hub holds up nothing else."""
_TIMEOUT = httpx.Timeout(30.0)
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.safetensors")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME_OF_COMMIT = re.compile(r"[0-9A-Za-z_-]{1,128}")


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


class Downloads:
    """Owned by the gateway. There is one download of a repo at a time, shared by all requests that wait for it.

    `free_bytes` says how much space a folder's disk has left. A connection that brings nothing is tried again after
    `retry_seconds`, and then after longer and longer pauses.
    """

    def __init__(
        self,
        cache_dir: Path,
        endpoint: str,
        *,
        free_bytes: Callable[[Path], int] = _free_bytes,
        retry_seconds: float = 1.0,
    ) -> None:
        self._cache_dir, self._endpoint = cache_dir, endpoint.rstrip("/")
        self._free_bytes, self._retry_seconds = free_bytes, retry_seconds
        self._running: dict[tuple[str, str | None], asyncio.Future[Path]] = {}
        self._reporters: dict[tuple[str, str | None], list[Progress]] = {}
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="download")

    def snapshots(self) -> Iterator[tuple[str, Path]]:
        """(repo id, folder) of every complete model in the cache, whichever tool fetched it."""
        for folder in sorted(self._cache_dir.glob("models--*--*")):
            repo = folder.name.removeprefix("models--").replace("--", "/", 1)
            if is_repo_id(repo) and (snapshot := self.local(repo)):
                yield repo, snapshot

    def local(self, repo: str, revision: str | None = None) -> Path | None:
        """The folder of a repo's `revision` (default: main) if it is complete."""
        folder = self._repo_folder(repo)
        commit = _commit(folder / "refs" / (revision or "main")) or revision
        snapshot = folder / "snapshots" / commit if commit and "/" not in commit else None
        try:
            return snapshot if snapshot is not None and is_complete(snapshot) else None
        except OSError:
            return None  # what cannot be read is fetched again

    async def fetch(self, repo: str, revision: str | None = None, *, on_progress: Progress | None = None) -> Path:
        """Download what is missing of a repo, and return its folder. `on_progress` gets (bytes here, bytes in all).

        The download goes on when the caller leaves, and the next caller finds it further on. Raises `ModelNotFound`, or
        `Unavailable` with cause and fix (hub out of reach, access refused, disk full, damaged files).
        """
        if folder := self.local(repo, revision):
            return folder
        key = (repo, revision)
        reporters = self._reporters.setdefault(key, [])
        if on_progress:
            reporters.append(on_progress)
        if key not in self._running:
            self._running[key] = asyncio.get_running_loop().run_in_executor(self._threads, self._fetch, key)
            self._running[key].add_done_callback(lambda download: self._ended(key, download))
        try:
            return await asyncio.shield(self._running[key])
        finally:
            if on_progress:
                reporters.remove(on_progress)

    async def close(self) -> None:
        """Stop the downloads. What has arrived is kept. Every waiting `fetch` raises `Unavailable`."""
        self._stop.set()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        self._threads.shutdown(wait=False)

    def _ended(self, key: tuple[str, str | None], download: asyncio.Future[Path]) -> None:
        self._running.pop(key, None)
        self._reporters.pop(key, None)
        if not download.cancelled() and (error := download.exception()):
            logger.warning("download failed: %s", error, extra={"action": "download_failed", "repo": key[0]})

    def _repo_folder(self, repo: str) -> Path:
        return self._cache_dir / f"models--{repo.replace('/', '--')}"

    # In a thread -------------------------------------------------------------------------------------------------

    def _fetch(self, key: tuple[str, str | None]) -> Path:
        from huggingface_hub import HfApi, get_token

        repo, revision = key
        with self._told_by_cause(repo):
            if self._stop.is_set():  # `close` came while it waited for a thread
                raise Stopped
            listing = HfApi(endpoint=self._endpoint).model_info(
                repo, revision=revision, files_metadata=True, timeout=30
            )
            commit = str(listing.sha)
            if not _COMMIT.fullmatch(commit):
                raise ValueError(f"the hub names the commit {commit!r}")
            token = get_token()
            # httpx drops the header when a redirect leads to another host.
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            with httpx.Client(headers=headers, timeout=_TIMEOUT, follow_redirects=True) as client:
                self._fetch_files(client, key, commit, wanted(listing.siblings or []))
            snapshot = self._repo_folder(repo) / "snapshots" / commit
            if not is_complete(snapshot):
                raise Unavailable(f"{repo} has no weights that this engine reads (*.safetensors)", param="model")
            self._point_at(repo, revision or "main", commit)
            return snapshot

    def _fetch_files(
        self, client: httpx.Client, key: tuple[str, str | None], commit: str, files: list[RemoteFile]
    ) -> None:
        from huggingface_hub import hf_hub_url

        repo, total, done = key[0], sum(file.size for file in files), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            for reporter in list(self._reporters.get(key, ())):
                reporter(done, total)

        transfer = Transfer(
            client, self._repo_folder(repo), commit, stop=self._stop, report=advance, retry_seconds=self._retry_seconds
        )
        advance(sum(map(transfer.bytes_here, files)))
        self._check_space(repo, total - done)
        for file in files:
            transfer.fetch(hf_hub_url(repo, file.name, revision=commit, endpoint=self._endpoint), file)

    def _check_space(self, repo: str, needed: int) -> None:
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        free = self._free_bytes(self._cache_dir)
        if needed and needed + SPARE_BYTES > free:
            raise Unavailable(
                f"{repo} needs {needed / 1e9:.2f} GB more, and {SPARE_BYTES / 1e9:.2f} GB must stay free; "
                f"{free / 1e9:.2f} GB are free in {self._cache_dir}",
                param="model",
            )

    def _point_at(self, repo: str, revision: str, commit: str) -> None:
        """Let the branch's name lead to a commit. Called only when all of the commit is here."""
        if revision == commit:
            return
        reference = self._repo_folder(repo) / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        fresh = reference.with_name(f".{reference.name}.new")
        fresh.write_text(commit)
        fresh.replace(reference)

    @contextmanager
    def _told_by_cause(self, repo: str) -> Iterator[None]:
        """Turn every error of the hub, its library, the network or the disk into one that says what to do."""
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        def unavailable(message: str) -> Unavailable:
            return Unavailable(message, param="model")

        try:
            yield
        except DuetError:
            raise
        except Stopped as error:
            raise unavailable(f"the engine goes down; the download of {repo} goes on when it is asked again") from error
        except GatedRepoError as error:
            raise unavailable(f"{repo} is gated: accept its terms on the hub and set HF_TOKEN") from error
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise ModelNotFound(
                f"the hub has no model {repo} (or it is private: set HF_TOKEN)", param="model"
            ) from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            advice = "set an HF_TOKEN that may read it" if status in (401, 403) else "ask again later"
            raise unavailable(f"the hub refused {repo}: HTTP {status}; {advice}") from error
        except OfflineModeIsEnabled as error:
            raise unavailable(f"{repo} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it") from error
        except OSError as error:
            if error.errno in NO_ROOM:
                raise unavailable(f"the disk became full while {repo} was fetched; free space and ask again") from error
            raise unavailable(f"{repo} cannot be written to {self._cache_dir}: {error.strerror or error}") from error
        except ValueError as error:
            raise unavailable(f"the hub's answer about {repo} cannot be used: {error}") from error
        except Exception as error:  # the network's errors as the hub's library lets them through
            raise unavailable(
                f"the hub at {self._endpoint} gave no list of {repo} ({type(error).__name__}); ask again"
            ) from error


def _commit(reference: Path) -> str | None:
    """The commit that a branch's file names; None if there is no such file, or another program left something else there."""
    try:
        named = read_bytes(reference, 1024).decode("ascii").strip()
    except (Problem, UnicodeDecodeError):
        return None
    return named if _NAME_OF_COMMIT.fullmatch(named) else None


def is_complete(folder: Path) -> bool:
    """Whether a snapshot has its config, its weights, and every shard that the index or another shard's name implies."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(map(str, read_object(index)["weight_map"].values()))
        except (Problem, KeyError, TypeError, AttributeError):
            return False
        return bool(names) and all((folder / name).is_file() for name in names)
    weights = {path.name for path in folder.glob("*.safetensors") if path.is_file()}
    return bool(weights) and all(_siblings(name) <= weights for name in weights)


def _siblings(name: str) -> set[str]:
    """The names of all shards of a shard's set; only `name` when it is not a shard."""
    shard = _SHARD.fullmatch(name)
    if shard is None:
        return {name}
    count = int(shard["count"])
    return {f"{shard['stem']}-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)}


def wanted(siblings: list[Any]) -> list[RemoteFile]:
    """The files to fetch, out of the hub's list: the smallest first, so that a bad repo fails early, and config.json last.

    Raises `ValueError` for a file without size or digest, or with a name that leads out of the folder.
    """
    files = [
        RemoteFile(
            item.rfilename,
            item.lfs.size if item.lfs else -1 if item.size is None else item.size,
            item.lfs.sha256 if item.lfs else item.blob_id or "",
        )
        for item in siblings
        if item.rfilename.endswith(WANTED) and not item.rfilename.startswith(UNWANTED)
    ]
    return sorted(files, key=lambda file: (file.name == "config.json", file.size))
