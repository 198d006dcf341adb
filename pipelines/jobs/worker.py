"""Run queued jobs, one step a stage, and take over those of a worker that died."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer

from duet.errors import DuetError, InvalidRequest, NotFound, first_error
from duet.settings import Settings
from pipelines.jobs import executors
from pipelines.jobs.kinds import Kind, RunStage
from pipelines.jobs.store import (
    APPLICATION_VERSION,
    QUEUE,
    explained,
    identity,
    jobs_folder,
    open_database,
    root_folder,
)
from pipelines.meeting.job import JobFolder

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.3
REAP_SECONDS = 3.0
LONGEST_PAUSE_SECONDS = 30.0


class MeetingWorker:
    """Runs queued jobs of one kind in this process until cancelled, or until the store was replaced. It has one executor id.

    `run` raises `DuetError` when the store cannot be used any more."""

    def __init__(self, settings: Settings, kind: Kind) -> None:
        self._settings, self._kind = settings, kind

    async def run(self) -> None:
        engine = await self._open()
        opened = identity(self._settings)
        executor, lock = executors.claim(root_folder(self._settings))
        config: DBOSConfig = {
            "name": "duet",
            "system_database_engine": engine,
            "application_version": APPLICATION_VERSION,
            "executor_id": executor,
            "serializer": DBOSPortableJSONSerializer(),
            "run_migrations": False,
            "log_level": "WARNING",
        }
        DBOS(config=config)
        _register(self._settings, self._kind)
        try:
            with explained():
                await self._serve(executor, opened)
        finally:
            await asyncio.to_thread(DBOS.destroy, workflow_completion_timeout_sec=0)
            engine.dispose()
            lock.close()

    async def _serve(self, executor: str, opened: tuple[int, int] | None) -> None:
        await asyncio.to_thread(DBOS.launch)
        await DBOS.register_queue_async(
            QUEUE,
            worker_concurrency=self._settings.meetings.workers,
            polling_interval_sec=POLL_SECONDS,
            on_conflict="always_update",
        )
        logger.info("meeting worker ready", extra={"action": "worker_ready", "executor": executor})
        await self._reap(executor, opened)

    async def _open(self) -> sa.Engine:
        """The store, as soon as it can be used: it may be damaged, locked, or on a full disk. What is wrong is said once."""
        said, pause = "", REAP_SECONDS
        while True:
            try:
                return await asyncio.to_thread(open_database, self._settings)
            except DuetError as error:
                if error.message != said:
                    logger.error(  # noqa: TRY400 - the message is the whole cause
                        "no meeting can run: %s", error, extra={"action": "store_unusable"}
                    )
                said = error.message
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE_SECONDS, 2 * pause)

    async def _reap(self, own: str, opened: tuple[int, int] | None) -> None:
        """Take over the jobs of workers that have died and were not started again. Returns when the store is another file
        than the one that was opened."""
        root = root_folder(self._settings)
        while True:
            await asyncio.sleep(REAP_SECONDS)
            if identity(self._settings) != opened:
                logger.warning("the store was replaced: this worker ends", extra={"action": "store_replaced"})
                return
            running = await DBOS.list_workflows_async(status="PENDING", load_input=False, load_output=False)
            for executor in {workflow.executor_id for workflow in running} - {own, None}:
                with executors.if_dead(root, executor) as dead:
                    if dead:
                        await self._take_over(executor)

    async def _take_over(self, executor: str) -> None:
        """We hold its lock: no other worker takes these jobs over, and none starts under this id. So no process runs what
        is listed now."""
        left = await DBOS.list_workflows_async(
            status="PENDING", executor_id=executor, load_input=False, load_output=False
        )
        for workflow in left:
            logger.warning("taking over", extra={"action": "job_reaped", "job": workflow.workflow_id, "of": executor})
            await DBOS.resume_workflow_async(workflow.workflow_id, queue_name=QUEUE)


def _register(settings: Settings, kind: Kind) -> None:
    """The workflow and its steps. DBOS finds a recorded step by its number in the workflow and by its name."""
    steps = {stage: _step(settings, kind, stage, run) for stage, run in kind.stages.items()}

    async def workflow(job_id: str) -> dict[str, str]:
        done: dict[str, str] = {}
        for stage, step in steps.items():
            done[stage] = await step(job_id, dict(done))
        return done

    DBOS.workflow(name=kind.name)(workflow)


Step = Callable[[str, dict[str, str]], Coroutine[Any, Any, str]]
"""Called with the job's id and the artifact keys of the stages before."""


def _step(settings: Settings, kind: Kind, name: str, run: RunStage) -> Step:
    attempts = settings.meetings.stage_attempts

    async def stage(job_id: str, done: dict[str, str]) -> str:
        folder = JobFolder(jobs_folder(settings), job_id)
        with folder.locked() as worker_died:
            try:
                return await run(settings, folder, done, worker_died=worker_died)
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

    stage.__name__ = stage.__qualname__ = f"{kind.name}_{name}"
    step: Step = DBOS.step(
        name=f"{kind.name}.{name}",
        retries_allowed=attempts > 1,
        max_attempts=attempts,
        interval_seconds=1.0,
        backoff_rate=3.0,
        should_retry=lambda error: not isinstance(error, InvalidRequest | NotFound),
        preemptible=True,
    )(stage)
    return step


def _note_error(folder: JobFolder, stage: str, message: str) -> None:
    if not folder.exists:
        return  # deleted meanwhile
    try:
        progress = folder.progress()
        progress.error = f"{stage}: {message}"
        folder.write_progress(progress)
    except OSError:  # the disk may be full: this must not hide what ended the stage
        logger.exception("the error cannot be kept: %s: %s", stage, message, extra={"action": "error_lost"})
