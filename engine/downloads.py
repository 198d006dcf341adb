"""Models from the hub: fetched once, resumed after an interruption, verified, and never half served.

The files lie in the hub library's own cache, shared with every other tool on the machine. config.json is fetched last: a
folder without it is no model to anybody, so an unfinished download cannot be mistaken for one.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duet.errors import DuetError, ModelNotFound, Unavailable

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
WANTED = (".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken")
"""What a model needs. Pickled weights (.bin, .pt) are never fetched: loading one runs its code."""
SPARE_BYTES = 1 << 30
"""Left free on the disk after a download."""


@dataclass(frozen=True)
class _File:
    name: str
    size: int
    sha256: str | None


class Downloads:
    """Owned by the gateway. One download a repo at a time, shared by all who wait for it."""

    def __init__(self, cache_dir: Path, endpoint: str) -> None:
        self._cache_dir, self._endpoint = cache_dir, endpoint.rstrip("/")
        self._running: dict[tuple[str, str | None], asyncio.Task[Path]] = {}
        self._reporters: dict[tuple[str, str | None], list[Progress]] = {}

    def snapshots(self) -> Iterator[tuple[str, Path]]:
        """(repo id, folder) of every complete model in the cache, whoever fetched it."""
        for folder in sorted(self._cache_dir.glob("models--*--*")):
            repo = folder.name.removeprefix("models--").replace("--", "/")
            if snapshot := self.local(repo):
                yield repo, snapshot

    def local(self, repo: str, revision: str | None = None) -> Path | None:
        """The folder of a repo's `revision` (default main) if all of it is here."""
        folder = self._cache_dir / f"models--{repo.replace('/', '--')}"
        reference = folder / "refs" / (revision or "main")
        commit = reference.read_text().strip() if reference.is_file() else revision
        snapshot = folder / "snapshots" / commit if commit else None
        return snapshot if snapshot is not None and is_complete(snapshot) else None

    async def fetch(self, repo: str, revision: str | None = None, *, on_progress: Progress | None = None) -> Path:
        """Download what is missing of a repo and return its folder.

        A caller who leaves does not stop the download: the next one finds it further on. Raises `ModelNotFound`, or
        `Unavailable` with cause and fix (hub out of reach, access refused, disk full, damaged files).
        """
        if folder := self.local(repo, revision):
            return folder
        key = (repo, revision)
        reporters = self._reporters.setdefault(key, [])
        if on_progress:
            reporters.append(on_progress)
        if key not in self._running:
            self._running[key] = asyncio.create_task(asyncio.to_thread(self._fetch, key), name=f"download {repo}")
            self._running[key].add_done_callback(lambda task: self._ended(key, task))
        try:
            return await asyncio.shield(self._running[key])
        finally:
            if on_progress:
                reporters.remove(on_progress)

    def _ended(self, key: tuple[str, str | None], task: asyncio.Task[Path]) -> None:
        self._running.pop(key, None)
        self._reporters.pop(key, None)
        if not task.cancelled() and (error := task.exception()):
            logger.warning("download failed: %s", error, extra={"action": "download_failed", "repo": key[0]})

    # In a thread -------------------------------------------------------------------------------------------------

    def _fetch(self, key: tuple[str, str | None]) -> Path:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        repo, revision = key
        try:
            listing = HfApi(endpoint=self._endpoint).model_info(
                repo, revision=revision, files_metadata=True, timeout=30
            )
            files = _wanted(listing.siblings or [])
            self._check_space(repo, files)
            return self._fetch_files(key, str(listing.sha), files)
        except GatedRepoError as error:
            raise Unavailable(
                f"{repo} is gated: accept its terms on the hub and set HF_TOKEN", param="model"
            ) from error
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise ModelNotFound(
                f"the hub has no model {repo} (or it is private: set HF_TOKEN)", param="model"
            ) from error
        except HfHubHTTPError as error:
            raise Unavailable(f"the hub refused {repo}: {error.__class__.__name__}", param="model") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise Unavailable(
                    f"the disk became full while {repo} was downloaded; free space and ask again"
                ) from error
            raise Unavailable(
                f"the hub at {self._endpoint} is out of reach: {type(error).__name__}; ask again"
            ) from error
        except DuetError:
            raise
        except Exception as error:  # httpx's errors and what else the library lets through
            raise Unavailable(f"downloading {repo} failed: {type(error).__name__}; ask again") from error

    def _check_space(self, repo: str, files: list[_File]) -> None:
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        needed, free = sum(file.size for file in files), shutil.disk_usage(self._cache_dir).free
        if needed + SPARE_BYTES > free:
            raise Unavailable(
                f"{repo} needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free in {self._cache_dir}",
                param="model",
            )

    def _fetch_files(self, key: tuple[str, str | None], commit: str, files: list[_File]) -> Path:
        meter = _Meter(sum(file.size for file in files), lambda done, total: self._report(key, done, total))
        folder = Path()
        for file in files:
            path = self._fetch_file(key[0], commit, file, meter)
            folder = Path(str(path).removesuffix(file.name))
        # Only now may `main` point here.
        reference = folder.parent.parent / "refs" / (key[1] or "main")
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)
        if not is_complete(folder):
            raise Unavailable(f"{key[0]} has no weights that this engine reads (*.safetensors)", param="model")
        return folder

    def _fetch_file(self, repo: str, commit: str, file: _File, meter: _Meter) -> Path:
        """One file, verified; a damaged one is fetched once more from its beginning."""
        from huggingface_hub import hf_hub_download

        for attempt in (1, 2):
            start = meter.done
            path = Path(
                hf_hub_download(
                    repo, file.name, revision=commit, cache_dir=self._cache_dir, endpoint=self._endpoint,
                    tqdm_class=meter.bar_class(), force_download=attempt == 2,
                )
            )  # fmt: skip
            meter.set(start + file.size)
            if _matches(path, file):
                return path
            logger.warning("damaged download", extra={"action": "download_damaged", "repo": repo, "file": file.name})
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            meter.set(start)
        raise Unavailable(f"{repo}/{file.name} arrived damaged twice; ask again later", param="model")

    def _report(self, key: tuple[str, str | None], done: int, total: int) -> None:
        for reporter in list(self._reporters.get(key, ())):
            reporter(done, total)


class _Meter:
    """Bytes of the whole download, fed by the library's progress bars from its threads."""

    def __init__(self, total: int, report: Progress) -> None:
        self._lock, self._report = threading.Lock(), report
        self.total, self.done = total, 0

    def add(self, count: float) -> None:
        self.set(self.done + int(count))

    def set(self, done: int) -> None:
        with self._lock:
            self.done = max(0, min(done, self.total))
        self._report(self.done, self.total)

    def bar_class(self) -> type:
        from tqdm.auto import tqdm

        meter = self

        class Bar(tqdm):  # type: ignore[misc]
            """The library draws its progress with tqdm; this one draws nothing and tells the meter."""

            def __init__(self, *args: Any, **options: Any) -> None:
                options.pop("name", None)
                super().__init__(*args, **{**options, "disable": True})
                meter.add(options.get("initial") or 0)

            def update(self, n: float | None = 1) -> bool | None:
                meter.add(n or 0)
                return None

        return Bar


def is_complete(folder: Path) -> bool:
    """Whether a snapshot has its config, its weights, and every shard that the index names."""
    if not (folder / "config.json").is_file():
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return all((folder / name).is_file() for name in names)


def _wanted(siblings: list[Any]) -> list[_File]:
    """The files to fetch, smallest first so that a bad repo fails early, config.json last."""
    files = [
        _File(item.rfilename, item.size or 0, item.lfs.sha256 if item.lfs else None)
        for item in siblings
        if item.rfilename.endswith(WANTED) and not item.rfilename.startswith((".", "onnx/", "original/"))
    ]
    return sorted(files, key=lambda file: (file.name == "config.json", file.size))


def _matches(path: Path, file: _File) -> bool:
    if file.size and path.stat().st_size != file.size:
        return False
    if file.sha256 is None:
        return True
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest() == file.sha256
