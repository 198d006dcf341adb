"""Submit, watch, cancel, retry and delete jobs: what the router needs of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

import sqlalchemy as sa
from dbos import DBOSClient, DBOSPortableJSONSerializer, EnqueueOptions

from duet.errors import Busy, Conflict, NotFound
from duet.settings import Settings
from pipelines.jobs.store import (
    APPLICATION_VERSION,
    QUEUE,
    WORKFLOW,
    StoreDamaged,
    StoreUnusable,
    explained,
    forget_deleted,
    identity,
    jobs_folder,
    open_database,
)  # fmt: skip
from pipelines.meeting.job import JobFolder, Progress, Request, Status, sweep

logger = logging.getLogger(__name__)

T = TypeVar("T")

WATCH_SECONDS = 0.3
STOP_SECONDS = 5.0
ASK_SECONDS: Final = 15.0
"""A question to the store takes milliseconds. One that takes this long waits for a lock that another process holds."""
MAX_STUCK: Final = 2
"""So many questions may wait for a lock. Each holds a thread that other requests need, so later ones are refused at once."""

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


_LOCKED: Final = "the store of meetings is locked by another process; meetings go on when it lets go"


@dataclass(frozen=True)
class Job:
    """A job as it is now."""

    request: Request
    status: Status
    progress: Progress


class MeetingClient:
    """Submit, watch, cancel, retry and delete jobs. The router owns one; `open` it before use.

    Changes to one job run one after the other, so that a job that is being deleted is not queued, and none is queued twice.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: DBOSClient | None = None
        self._engine: sa.Engine | None = None
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._stuck = 0
        self._identity: tuple[int, int] | None = None
        self._damaged = False

    async def open(self) -> None:
        """Raises `StoreUnusable`."""
        await asyncio.to_thread(self._open)
        await self._adopt()

    def _open(self) -> None:
        self._engine = open_database(self._settings)
        sweep(jobs_folder(self._settings))
        self._client = DBOSClient(system_database_engine=self._engine, serializer=DBOSPortableJSONSerializer())
        self._identity, self._damaged = identity(self._settings), False

    async def close(self) -> None:
        if self._client is not None:
            await asyncio.to_thread(self._client.destroy)
            self._client = None
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    @property
    def is_lost(self) -> bool:
        """Whether the store that was opened is no more: it was found damaged, or it was set aside. It must be opened again."""
        return self._damaged or identity(self._settings) != self._identity

    async def _ask(self, question: Coroutine[Any, Any, T]) -> T:
        """The answer of the store. Raises `StoreUnusable` and `DiskFull`."""
        if self._stuck >= MAX_STUCK:
            question.close()
            raise StoreUnusable(_LOCKED)
        task = asyncio.ensure_future(question)
        done, _ = await asyncio.wait({task}, timeout=ASK_SECONDS)
        if not done:
            self._stuck += 1
            task.add_done_callback(self._unstuck)
            raise StoreUnusable(_LOCKED)
        try:
            with explained():
                return task.result()
        except StoreDamaged:
            self._damaged = True
            raise

    def _unstuck(self, task: asyncio.Future[Any]) -> None:
        self._stuck -= 1
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("a late answer of the jobs' store: %s", error, extra={"action": "store_late"})

    async def _adopt(self) -> None:
        """Queue the jobs whose folders the store does not know: it is new, or their submitter died before it queued them."""
        root = jobs_folder(self._settings)
        folders = [path.name for path in root.iterdir() if path.name.isalnum() and JobFolder(root, path.name).exists]
        known = await self._ask(
            self._dbos.list_workflows_async(workflow_ids=folders, load_input=False, load_output=False)
        )
        for job_id in sorted(set(folders) - {workflow.workflow_id for workflow in known}):
            logger.warning(
                "a meeting that the store does not know is queued", extra={"action": "job_adopted", "job": job_id}
            )
            await self._enqueue(job_id)

    @property
    def _dbos(self) -> DBOSClient:
        if self._client is None:
            raise StoreUnusable("the store of meetings is being opened", retry_after_seconds=2)
        return self._client

    def folder(self, job_id: str) -> JobFolder:
        """The job's files. Raises `NotFound`, also for an id that could leave the folder."""
        if job_id.isalnum() and len(job_id) <= 64:
            folder = JobFolder(jobs_folder(self._settings), job_id)
            if folder.exists:
                return folder
        raise NotFound(f"there is no meeting {job_id[:64]!r}", param="id")

    async def submit(self, request: Request, source: Path) -> bool:
        """Queue a job; False if the same one is known already. It takes `source` away. Raises `Busy`."""
        folder = JobFolder(jobs_folder(self._settings), request.id)
        async with self._lock(request.id):
            known = await self._status(request.id)
            if folder.exists and known is not None:
                return False
            waiting = await self._ask(self._dbos.list_queued_workflows_async(queue_name=QUEUE, load_input=False))
            if len(waiting) >= self._settings.meetings.max_queued:
                raise Busy(f"{len(waiting)} meetings are waiting already", retry_after_seconds=60)
            if known is not None:  # a deletion was cut short after the files had gone
                await self._ask(self._dbos.delete_workflow_async(request.id))
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
        await self._ask(self._dbos.enqueue_async(options, job_id))

    async def get(self, job_id: str) -> Job:
        """Raises `NotFound`."""
        folder = self.folder(job_id)
        status = await self._status(job_id)
        if status is None:
            # The submitter died after making the folder and before queueing the job: queue it now, and nothing is lost.
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
            if path.name.isalnum():  # a name with a dot is being removed
                with contextlib.suppress(FileNotFoundError):  # not complete yet, or deleted meanwhile
                    requests.append(JobFolder(root, path.name).request())
        requests.sort(key=lambda request: (-request.created_at, request.id))
        for request in requests[offset : offset + limit]:
            with contextlib.suppress(NotFound):
                jobs.append(await self.get(request.id))
        return jobs

    async def events(self, job_id: str) -> AsyncIterator[Job]:
        """The job now, and again whenever it changes, until it ends."""
        last: Any = None
        while True:
            job = await self.get(job_id)
            seen = (job.status, job.progress)
            if seen != last:
                last = seen
                yield job
            if job.status in ENDED:
                return
            await asyncio.sleep(WATCH_SECONDS)

    async def cancel(self, job_id: str) -> None:
        """Stop a job. Its finished stages stay for a retry. A job that has ended stays as it is."""
        async with self._lock(job_id):
            self.folder(job_id)
            await self._cancel(job_id)

    async def _cancel(self, job_id: str) -> None:
        status = await self._status(job_id)
        if status is None:
            await self._enqueue(job_id)
        if status not in ENDED:
            await self._ask(self._dbos.cancel_workflow_async(job_id))

    async def retry(self, job_id: str) -> None:
        """Continue a failed or cancelled job where it stopped. Raises `Conflict`."""
        async with self._lock(job_id):
            folder, status = self.folder(job_id), await self._status(job_id)
            if status not in ("failed", "cancelled"):
                raise Conflict(f"only a failed or cancelled meeting can be retried; this one is {status}")
            if not await self._wait_until_idle(folder):
                raise Conflict("this meeting is still being stopped: try again in a moment")
            folder.forget_failures()
            # The workflow's end is recorded, so it cannot go on. A new one under the same id finds the artifacts.
            await self._ask(self._dbos.delete_workflow_async(job_id))
            await self._enqueue(job_id)

    async def delete(self, job_id: str) -> None:
        """Cancel it and remove the recording and everything derived from it."""
        async with self._lock(job_id):
            folder = self.folder(job_id)
            await self._cancel(job_id)
            await self._wait_until_idle(folder)
            await asyncio.to_thread(folder.remove)
            await self._ask(self._dbos.delete_workflow_async(job_id))
        if self._engine is not None and not await asyncio.to_thread(forget_deleted, self._engine):
            logger.warning(
                "the store is busy: traces of a deleted meeting stay until the next deletion",
                extra={"action": "traces_stay"},
            )

    async def _wait_until_idle(self, folder: JobFolder) -> bool:
        """Whether the stage that ran has ended. A cancelled stage ends at its next await, so it gets a moment: it must meet
        neither the removal of its files nor its own second run."""
        deadline = time.monotonic() + STOP_SECONDS
        while folder.is_locked:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.05)
        return True

    async def _status(self, job_id: str) -> Status | None:
        found = await self._ask(
            self._dbos.list_workflows_async(workflow_ids=[job_id], load_input=False, load_output=False)
        )
        return _STATUS[found[0].status] if found else None
