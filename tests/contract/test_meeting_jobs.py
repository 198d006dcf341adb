"""The job store between router and workers: what a killed or poisoned worker leaves behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from duet.errors import Conflict, NotFound
from duet.settings import Settings
from pipelines.jobs import client as jobs
from pipelines.jobs import executors, worker
from pipelines.jobs.client import MeetingClient
from pipelines.jobs.store import jobs_folder
from pipelines.meeting.context import Context, StageEnded
from pipelines.meeting.job import MAX_DEATHS, GaveUp, Progress, StageTimes
from pipelines.meeting.stages import STAGES, Stage, run_stage
from tests.conftest import HomeSettings
from tests.fakes.meetings import asked, opened, submit


@pytest.fixture
def settings(home_settings: HomeSettings) -> Settings:
    return home_settings(embedded=True)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[MeetingClient]:
    async with opened(settings) as client:
        yield client


async def test_a_cancelled_job_is_retried_only_when_its_stage_has_ended(
    client: MeetingClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "STOP_SECONDS", 0.1)
    folder = await submit(client, settings)
    await client.cancel("one")
    with folder.locked(), pytest.raises(Conflict, match="still being stopped"):
        await client.retry("one")
    await client.retry("one")
    assert (await client.get("one")).status == "queued"


async def test_retries_at_the_same_moment_queue_the_job_once(client: MeetingClient, settings: Settings) -> None:
    await submit(client, settings)
    await client.cancel("one")
    found = await asyncio.gather(*(client.retry("one") for _ in range(4)), return_exceptions=True)
    assert sorted(type(item).__name__ for item in found) == ["Conflict", "Conflict", "Conflict", "NoneType"]


async def test_a_job_that_is_looked_at_while_it_is_deleted_is_not_queued_again(
    client: MeetingClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit(client, settings)
    delete = client._dbos.delete_workflow_async
    looking: list[asyncio.Task[object]] = []

    async def delete_while_watched(job_id: str) -> None:
        await delete(job_id)
        looking.append(asyncio.create_task(client.get(job_id)))
        await asyncio.wait(looking, timeout=0.5)

    monkeypatch.setattr(client._dbos, "delete_workflow_async", delete_while_watched)
    await client.delete("one")
    with pytest.raises(NotFound):
        await looking[0]
    assert await client._status("one") is None


async def test_a_deletion_that_was_cut_short_does_not_hold_up_the_same_recording(
    client: MeetingClient, settings: Settings
) -> None:
    folder = await submit(client, settings)
    await client.cancel("one")
    folder.remove()
    await submit(client, settings)
    assert (await client.get("one")).status == "queued"


async def test_what_a_killed_removal_left_is_swept_at_start(client: MeetingClient, settings: Settings) -> None:
    folder = await submit(client, settings)
    folder.path.rename(folder.path.with_name(".removed-one.00000000"))
    await submit(client, settings)
    assert len(await client.list(limit=10, offset=0)) == 1
    async with opened(settings):
        pass
    assert list(jobs_folder(settings).iterdir()) == [folder.path]


async def test_a_job_that_was_never_queued_can_be_cancelled(client: MeetingClient, settings: Settings) -> None:
    await submit(client, settings)
    await client._dbos.delete_workflow_async("one")
    await client.cancel("one")
    assert (await client.get("one")).status == "cancelled"


async def test_a_thread_that_its_cancelled_stage_left_behind_writes_nothing_more(
    client: MeetingClient, settings: Settings
) -> None:
    folder = await submit(client, settings)
    contexts: list[Context] = []

    async def endless(context: Context, done: dict[str, str]) -> str:
        contexts.append(context)
        await asyncio.sleep(600)
        return ""

    running = asyncio.create_task(run_stage(Stage("decode", 1.0, endless), settings, folder, {}))
    while not contexts:
        await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])
    before = folder.progress()
    for late in (lambda: contexts[0].report(1.0), lambda: contexts[0].warn("late")):
        with pytest.raises(StageEnded):
            await asyncio.to_thread(late)
    assert folder.progress() == before


async def test_an_error_that_cannot_be_kept_hides_nothing(
    client: MeetingClient, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    folder = await submit(client, settings)
    (folder.path / "progress.json").mkdir()
    worker._note_error(folder, "export", "No space left on device")
    assert "export: No space left on device" in caplog.text


def test_a_dead_worker_is_taken_over_by_one_and_its_id_is_not_used_meanwhile(tmp_path: Path) -> None:
    with executors.if_dead(tmp_path, "executor-0") as first, executors.if_dead(tmp_path, "executor-0") as second:
        assert (first, second) == (True, False)
        executor, lock = executors.claim(tmp_path)
    with lock, executors.if_dead(tmp_path, executor) as dead:
        assert (executor, dead) == ("executor-1", False)


async def test_a_stage_that_kills_is_given_up_and_a_retry_begins_anew(
    client: MeetingClient, settings: Settings
) -> None:
    folder = await submit(client, settings)
    finished = StageTimes(1.0, 2.0)
    folder.write_progress(
        Progress(stage="segment", stages={"decode": finished, "segment": StageTimes(3.0, deaths=MAX_DEATHS - 1)})
    )
    with pytest.raises(GaveUp, match=f"died {MAX_DEATHS} times"):
        await run_stage(STAGES[1], settings, folder, {"decode": "x"}, worker_died=True)
    await client.cancel("one")
    await client.retry("one")
    assert folder.progress().stages == {"decode": finished}
    assert (await client.get("one")).status == "queued"


async def test_stages_that_an_older_version_ran_count_in_the_progress(
    client: MeetingClient, settings: Settings
) -> None:
    folder = await submit(client, settings)
    old = {"stage": "segment", "done": 1.0, "stages": {"decode": {"started_at": 1.0, "finished_at": 2.0}}}
    (folder.path / "progress.json").write_text(json.dumps(old))

    async def quick(context: Context, done: dict[str, str]) -> str:
        return "key"

    await run_stage(replace(STAGES[1], run=quick), settings, folder, {"decode": "x"})
    assert (await client.get("one")).progress.overall == 0.08


async def test_the_mark_of_a_killed_worker_is_not_waited_for(
    client: MeetingClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "STOP_SECONDS", 120.0)
    folder = await submit(client, settings)
    (folder.path / "running").write_bytes(b".")
    async with asyncio.timeout(60):
        await client.delete("one")
    assert list(jobs_folder(settings).iterdir()) == []


async def test_a_job_that_is_deleted_while_it_is_listed_is_left_out(client: MeetingClient, settings: Settings) -> None:
    await submit(client, settings)
    await submit(client, settings, "two")
    (jobs_folder(settings) / "half-made").mkdir()
    (jobs_folder(settings) / "two" / "job.json").unlink()
    assert [job.request.id for job in await client.list(limit=10, offset=0)] == ["one"]


async def test_the_same_job_submitted_twice_at_once_is_one_job(client: MeetingClient, settings: Settings) -> None:
    await asyncio.gather(*(submit_quietly(client, settings, i) for i in range(4)))
    jobs = await client.list(limit=10, offset=0)
    assert [(job.request.id, job.status) for job in jobs] == [("same", "queued")]


async def submit_quietly(client: MeetingClient, settings: Settings, number: int) -> None:
    upload = settings.home / f"upload-{number}"
    upload.write_bytes(b"RIFF")
    await client.submit(asked("same"), upload)
