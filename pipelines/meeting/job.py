"""A meeting job on disk: its request, its progress and its results. They are plain files that every process can read.

$DUET_HOME/meetings/jobs/<id>/
    job.json         the request; written once
    input            the uploaded file
    progress.json    stage, shares, times, warnings; replaced by rename
    running          locked by the process that runs a stage; not empty during a stage, and after that process died in one
    artifacts/       results of stages and batches, by content key
    outputs/         the five files
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from duet.errors import Conflict, InvalidRequest
from duet.home import remove_tree
from pipelines.meeting.artifacts import write_atomically

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
OUTPUTS = {
    "transcript": ("transcript.md", "text/markdown; charset=utf-8"),
    "reviewed": ("reviewed.md", "text/markdown; charset=utf-8"),
    "timeline": ("timeline.json", "application/json"),
    "srt": ("subtitles.srt", "application/x-subrip; charset=utf-8"),
    "summary": ("summary.md", "text/markdown; charset=utf-8"),
}


MAX_DEATHS = 3
"""How often a worker may die in one stage of one job. It is less than the number of crashes after which `duet up` lets the
worker rest."""


class GaveUp(InvalidRequest):
    """The stage took its worker down too often."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The submitter's choices. `glossary` is the text as given: one term a line, aliases after `|`."""

    title: str = ""
    glossary: str = ""
    language: str | None = None
    speakers: int | None = None
    quality: Literal["auto", "fast", "high"] = "auto"
    strict: bool = False


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """`input_sha256` identifies the recording: artifacts depend on it."""

    id: str
    options: Options
    input_sha256: str
    input_name: str
    created_at: float


class StageTimes(msgspec.Struct):
    """Seconds since the epoch. `runs` counts how often the stage was begun, `deaths` how often its worker died in it.

    `share` is the stage's part of the whole job's time, 0 to 1. It stands here because the router shows progress and knows
    no stages.
    """

    started_at: float
    finished_at: float | None = None
    runs: int = 1
    deaths: int = 0
    share: float = 0.0


class Progress(msgspec.Struct):
    """`done` is the current stage's share, 0 to 1."""

    stage: str | None = None
    done: float = 0.0
    stages: dict[str, StageTimes] = {}
    warnings: list[str] = []
    error: str | None = None
    audio_seconds: float | None = None

    @property
    def overall(self) -> float:
        """0 to 1 over all stages."""
        finished = sum(times.share for times in self.stages.values() if times.finished_at is not None)
        current = self.stages.get(self.stage or "")
        part = current.share * self.done if current and current.finished_at is None else 0.0
        return round(min(1.0, finished + part), 4)


DOOMED = ".removed-"
"""Folders that are being removed."""


def sweep(root: Path) -> None:
    """Remove what is left of a removal whose process was killed."""
    for path in root.glob(f"{DOOMED}*"):
        with contextlib.suppress(OSError):  # the process that began it may still be at work
            remove_tree(path)


class JobFolder:
    """The files of one job. The submitter writes `job.json` and `input`, the worker everything else."""

    def __init__(self, root: Path, job_id: str) -> None:
        self.id = job_id
        self.path = root / job_id

    @property
    def input(self) -> Path:
        return self.path / "input"

    @property
    def exists(self) -> bool:
        return (self.path / "job.json").is_file()

    def create(self, request: Request, source: Path) -> None:
        """Take the uploaded file (by rename or copy), and write the request last: a folder without it is no job."""
        for folder in (self.path, self.path / "artifacts", self.path / "outputs"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.move(source, self.input)
        write_atomically(self.path / "job.json", msgspec.json.encode(request))

    def request(self) -> Request:
        return msgspec.json.decode((self.path / "job.json").read_bytes(), type=Request)

    def progress(self) -> Progress:
        try:
            return msgspec.json.decode((self.path / "progress.json").read_bytes(), type=Progress)
        except FileNotFoundError:
            return Progress()

    def write_progress(self, progress: Progress) -> None:
        write_atomically(self.path / "progress.json", msgspec.json.encode(progress), durable=False)

    @contextlib.contextmanager
    def locked(self) -> Iterator[bool]:
        """Lock the job while a stage runs. The system frees the lock when the process dies. Yields whether the process that
        had it last died in its stage. Raises `Conflict` when another run of the job has not ended yet."""
        with self._running.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Conflict("an earlier run of this meeting has not ended yet") from error
            died = os.fstat(file.fileno()).st_size > 0
            file.write(b"." * (not died))
            file.flush()
            try:
                yield died
            finally:
                file.truncate(0)

    @property
    def is_locked(self) -> bool:
        """Whether a stage runs now, in any process."""
        try:
            with self._running.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    @property
    def _running(self) -> Path:
        return self.path / "running"

    def forget_failures(self) -> None:
        """Before a retry, while no worker runs the job: each stage that did not end may again take `MAX_DEATHS` workers down."""
        self._running.unlink(missing_ok=True)
        progress = self.progress()
        progress.stages = {name: times for name, times in progress.stages.items() if times.finished_at is not None}
        progress.error = None
        self.write_progress(progress)

    def output(self, name: str) -> Path:
        return self.path / "outputs" / OUTPUTS[name][0]

    def remove(self) -> None:
        """Remove the recording and everything derived from it. Raises `OSError` when something stays.

        The folder is renamed first: a stage that has not noticed yet finds no folder to write to, and the id is free at once.
        """
        doomed = self.path.with_name(f"{DOOMED}{self.id}.{secrets.token_hex(4)}")
        try:
            self.path.rename(doomed)
        except FileNotFoundError:
            return  # another process removes it
        remove_tree(doomed)
