"""Durable meeting jobs on DBOS: the only file that knows it.

The artifacts on disk are the truth: a step's recorded result is an artifact key, and a step that runs again finds what it
had made. A worker holds a lock file for its executor id, so an id is never used twice, and a dead worker is one whose lock
is free: its jobs are taken over by whoever sees that first.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSConfig, DBOSPortableJSONSerializer, EnqueueOptions, run_dbos_database_migrations

from duet.errors import Busy, Conflict, DuetError, InvalidRequest, NotFound, first_error
from duet.settings import Settings
from pipelines.meeting.job import STAGES, JobFolder, Progress, Request, Status, sweep

logger = logging.getLogger(__name__)

QUEUE = "meetings"
WORKFLOW = "meeting"
# Pinned: by default DBOS hashes the source, and an upgrade of Duet would strand the jobs that run.
APPLICATION_VERSION = "duet-meetings-1"
MAX_EXECUTORS = 64
POLL_SECONDS = 0.3
REAP_SECONDS = 3.0
STOP_SECONDS = 5.0

_STATUS: Final[dict[str, Status]] = {
    "ENQUEUED": "queued",
    "DELAYED": "queued",
    "PENDING": "running",
    "SUCCESS": "succeeded",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}
ENDED: Final[frozenset[Status]] = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class Job:
    """A job as it is now."""

    request: Request
    status: Status
    progress: Progress


def _root(settings: Settings) -> Path:
    return settings.home / "meetings"


def jobs_folder(settings: Settings) -> Path:
    return _root(settings) / "jobs"


def _prepare_database(settings: Settings) -> sa.Engine:
    """The job store, migrated, in WAL mode; one process at a time."""
    root = _root(settings)
    jobs_folder(settings).mkdir(mode=0o700, parents=True, exist_ok=True)
    root.chmod(0o700)
    path = root / "jobs.sqlite"
    with (root / "migrate.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})
        with engine.connect() as connection:
            # Without WAL readers wait for writers: polling a job took 181 ms at the 99th percentile instead of 9.
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        run_dbos_database_migrations(f"sqlite:///{path}")
    path.chmod(0o600)
    return engine


class MeetingClient:
    """Submit, watch, cancel and delete jobs. Owned by the router, one a home; `open` before use.

    What changes a job is done one after the other, so that nothing is queued that is being deleted, and nothing twice.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: DBOSClient | None = None
        self._engine: sa.Engine | None = None
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def open(self) -> None:
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        self._engine = _prepare_database(self._settings)
        sweep(jobs_folder(self._settings))
        self._client = DBOSClient(
            system_database_url=f"sqlite:///{_root(self._settings) / 'jobs.sqlite'}",
            system_database_engine=self._engine,
            serializer=DBOSPortableJSONSerializer(),
        )

    async def close(self) -> None:
        if self._client is not None:
            await asyncio.to_thread(self._client.destroy)
        if self._engine is not None:
            self._engine.dispose()

    @property
    def _dbos(self) -> DBOSClient:
        if self._client is None:
            raise RuntimeError("MeetingClient is not open")
        return self._client

    def folder(self, job_id: str) -> JobFolder:
        """The job's files. Raises `NotFound`, also for an id that could leave the folder."""
        if job_id.isalnum() and len(job_id) <= 64:
            folder = JobFolder(jobs_folder(self._settings), job_id)
            if folder.exists:
                return folder
        raise NotFound(f"there is no meeting {job_id[:64]!r}", param="id")

    async def submit(self, request: Request, source: Path) -> bool:
        """Queue a job; False if the same one is known already. Takes `source` over. Raises `Busy`."""
        folder = JobFolder(jobs_folder(self._settings), request.id)
        async with self._lock(request.id):
            known = await self._status(request.id)
            if folder.exists and known is not None:
                return False
            waiting = await self._dbos.list_queued_workflows_async(queue_name=QUEUE, load_input=False)
            if len(waiting) >= self._settings.meetings.max_queued:
                raise Busy(f"{len(waiting)} meetings are waiting already", retry_after_seconds=60)
            if known is not None:  # a deletion was cut short after the files had gone
                await self._dbos.delete_workflow_async(request.id)
            folder.create(request, source)
            await self._enqueue(request.id)
            return True

    def _lock(self, job_id: str) -> asyncio.Lock:
        return self._changing.setdefault(job_id, asyncio.Lock())

    async def _enqueue(self, job_id: str) -> None:
        options: EnqueueOptions = {
            "queue_name": QUEUE,
            "workflow_name": WORKFLOW,
            "workflow_id": job_id,
            "app_version": APPLICATION_VERSION,
        }
        await self._dbos.enqueue_async(options, job_id)

    async def get(self, job_id: str) -> Job:
        """Raises `NotFound`."""
        folder = self.folder(job_id)
        status = await self._status(job_id)
        if status is None:
            # The submitter died between making the folder and queueing it: queue it now, nothing is lost.
            async with self._lock(job_id):
                self.folder(job_id)  # deleted meanwhile?
                await self._enqueue(job_id)
            status = "queued"
        try:
            return Job(folder.request(), status, folder.progress())
        except FileNotFoundError as error:  # deleted meanwhile
            raise NotFound(f"there is no meeting {job_id!r}", param="id") from error

    async def list(self, *, limit: int, offset: int) -> list[Job]:
        """Newest first."""
        root = jobs_folder(self._settings)
        requests, jobs = list[Request](), list[Job]()
        for path in root.iterdir():
            if path.name.isalnum():  # others are being removed
                with contextlib.suppress(FileNotFoundError):  # not complete yet, or deleted meanwhile
                    requests.append(JobFolder(root, path.name).request())
        requests.sort(key=lambda request: (-request.created_at, request.id))
        for request in requests[offset : offset + limit]:
            with contextlib.suppress(NotFound):
                jobs.append(await self.get(request.id))
        return jobs

    async def events(self, job_id: str) -> AsyncIterator[Job]:
        """The job whenever it changes, from now to its end."""
        last: Any = None
        while True:
            job = await self.get(job_id)
            seen = (job.status, job.progress)
            if seen != last:
                last = seen
                yield job
            if job.status in ENDED:
                return
            await asyncio.sleep(POLL_SECONDS)

    async def cancel(self, job_id: str) -> None:
        """Stop it; finished stages stay for a retry. An ended job stays as it is."""
        async with self._lock(job_id):
            self.folder(job_id)
            await self._cancel(job_id)

    async def _cancel(self, job_id: str) -> None:
        status = await self._status(job_id)
        if status is None:
            await self._enqueue(job_id)
        if status not in ENDED:
            await self._dbos.cancel_workflow_async(job_id)

    async def retry(self, job_id: str) -> None:
        """Go on with a failed or cancelled job where it stopped. Raises `Conflict`."""
        async with self._lock(job_id):
            folder, status = self.folder(job_id), await self._status(job_id)
            if status not in ("failed", "cancelled"):
                raise Conflict(f"only a failed or cancelled meeting can be retried; this one is {status}")
            if not await self._wait_until_idle(folder):
                raise Conflict("this meeting is still being stopped: try again in a moment")
            folder.forget_failures()
            # An erroneous workflow has its end recorded: a new one under the same id, and the artifacts, go on there.
            await self._dbos.delete_workflow_async(job_id)
            await self._enqueue(job_id)

    async def delete(self, job_id: str) -> None:
        """Cancel it and remove the recording and everything derived from it."""
        async with self._lock(job_id):
            folder = self.folder(job_id)
            await self._cancel(job_id)
            await self._wait_until_idle(folder)
            await asyncio.to_thread(folder.remove)
            await self._dbos.delete_workflow_async(job_id)

    async def _wait_until_idle(self, folder: JobFolder) -> bool:
        """A cancelled stage ends at its next await: give it a moment, so that it meets neither the removal nor its own
        second run."""
        deadline = time.monotonic() + STOP_SECONDS
        while folder.is_held:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.05)
        return True

    async def _status(self, job_id: str) -> Status | None:
        found = await self._dbos.list_workflows_async(workflow_ids=[job_id], load_input=False, load_output=False)
        return _STATUS[found[0].status] if found else None


class MeetingWorker:
    """Runs queued jobs in this process until cancelled. One executor id, held by a lock."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def run(self) -> None:
        engine = await asyncio.to_thread(_prepare_database, self._settings)
        executor, lock = _claim_executor(_root(self._settings))
        config: DBOSConfig = {
            "name": "duet",
            "system_database_url": f"sqlite:///{_root(self._settings) / 'jobs.sqlite'}",
            "system_database_engine": engine,
            "application_version": APPLICATION_VERSION,
            "executor_id": executor,
            "serializer": DBOSPortableJSONSerializer(),
            "run_migrations": False,
            "log_level": "WARNING",
        }
        DBOS(config=config)
        _register(self._settings)
        try:
            await asyncio.to_thread(DBOS.launch)
            await DBOS.register_queue_async(
                QUEUE,
                worker_concurrency=self._settings.meetings.workers,
                polling_interval_sec=POLL_SECONDS,
                on_conflict="always_update",
            )
            logger.info("meeting worker ready", extra={"action": "worker_ready", "executor": executor})
            await self._reap(executor)
        finally:
            await asyncio.to_thread(DBOS.destroy, workflow_completion_timeout_sec=0)
            engine.dispose()
            lock.close()

    async def _reap(self, own: str) -> None:
        """Take over the jobs of workers that have died and were not started again."""
        root = _root(self._settings)
        while True:
            await asyncio.sleep(REAP_SECONDS)
            running = await DBOS.list_workflows_async(status="PENDING", load_input=False, load_output=False)
            for executor in {workflow.executor_id for workflow in running} - {own, None}:
                with _dead(root, executor) as dead:
                    if dead:
                        await self._take_over(executor)

    async def _take_over(self, executor: str) -> None:
        """Its lock is ours: no other worker takes its jobs over, and none starts under its id. So what is listed now as
        its own is run by nobody."""
        left = await DBOS.list_workflows_async(
            status="PENDING", executor_id=executor, load_input=False, load_output=False
        )
        for workflow in left:
            logger.warning("taking over", extra={"action": "job_reaped", "job": workflow.workflow_id, "of": executor})
            await DBOS.resume_workflow_async(workflow.workflow_id, queue_name=QUEUE)


def _register(settings: Settings) -> None:
    """The workflow and its steps: one named function a stage, since DBOS knows a step by its name and place."""
    from pipelines.meeting.workflow import run_stage

    attempts = settings.meetings.stage_attempts

    def step_of(name: str) -> Any:
        async def stage(job_id: str, done: dict[str, str]) -> str:
            folder = JobFolder(jobs_folder(settings), job_id)
            with folder.held() as worker_died:
                try:
                    return await run_stage(settings, folder, name, done, worker_died=worker_died)
                except DuetError as error:
                    _note_error(folder, name, error.message)
                    raise
                except BaseExceptionGroup as group:
                    _note_error(folder, name, str(first_error(group)))
                    raise first_error(group) from group
                except Exception as error:
                    _note_error(folder, name, f"{type(error).__name__}: {error}")
                    logger.exception("stage failed", extra={"action": "stage_failed", "stage": name, "job": job_id})
                    raise

        stage.__name__ = stage.__qualname__ = f"meeting_{name}"
        return DBOS.step(
            name=f"meeting.{name}",
            retries_allowed=attempts > 1,
            max_attempts=attempts,
            interval_seconds=1.0,
            backoff_rate=3.0,
            should_retry=lambda error: not isinstance(error, InvalidRequest | NotFound),
            preemptible=True,
        )(stage)

    steps = {name: step_of(name) for name in STAGES}

    async def meeting(job_id: str) -> dict[str, str]:
        done: dict[str, str] = {}
        for name, step in steps.items():
            done[name] = await step(job_id, dict(done))
        return done

    DBOS.workflow(name=WORKFLOW)(meeting)


def _note_error(folder: JobFolder, stage: str, message: str) -> None:
    if not folder.exists:
        return  # deleted meanwhile
    try:
        progress = folder.progress()
        progress.error = f"{stage}: {message}"
        folder.write_progress(progress)
    except OSError:  # the disk is full, perhaps: what ended the stage must not be hidden by that
        logger.exception("the error cannot be kept: %s: %s", stage, message, extra={"action": "error_lost"})


def _claim_executor(root: Path) -> tuple[str, Any]:
    """The first free executor id and the lock that holds it for as long as this process lives."""
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
def _dead(root: Path, executor: str) -> Iterator[bool]:
    """Whether nobody holds the executor's lock. If so we hold it within the block."""
    with (root / f"{executor}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
