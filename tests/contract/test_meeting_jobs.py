"""The job store between router and workers: what a killed or poisoned worker leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from duet.errors import Conflict, NotFound
from duet.settings import Settings, load_settings
from pipelines import jobs
from pipelines.jobs import MeetingClient, jobs_folder
from pipelines.meeting import workflow
from pipelines.meeting.job import MAX_DEATHS, GaveUp, JobFolder, Options, Progress, Request, StageTimes
from pipelines.meeting.stages import Context, StageEnded
from pipelines.meeting.workflow import run_stage
from tests import sounds


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"DUET_HOME": str(tmp_path)}, embedded=True)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[MeetingClient]:
    client = MeetingClient(settings)
    await client.open()
    yield client
    await client.close()


async def submit(client: MeetingClient, settings: Settings, job_id: str = "one") -> JobFolder:
    upload = settings.home / f"upload-{job_id}"
    upload.write_bytes(sounds.wav(sounds.pcm(sounds.tone(1.0))))
    asked = Request(id=job_id, options=Options(), input_sha256="0" * 64, input_name="a.wav", created_at=1.0)
    assert await client.submit(asked, upload)
    return JobFolder(jobs_folder(settings), job_id)


async def test_a_cancelled_job_is_retried_only_when_its_stage_has_ended(
    client: MeetingClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "STOP_SECONDS", 0.1)
    folder = await submit(client, settings)
    await client.cancel("one")
    with folder.held(), pytest.raises(Conflict, match="still being stopped"):
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
    other = MeetingClient(settings)
    await other.open()
    await other.close()
    assert list(jobs_folder(settings).iterdir()) == [folder.path]


async def test_a_job_that_was_never_queued_can_be_cancelled(client: MeetingClient, settings: Settings) -> None:
    await submit(client, settings)
    await client._dbos.delete_workflow_async("one")
    await client.cancel("one")
    assert (await client.get("one")).status == "cancelled"


async def test_a_thread_that_its_cancelled_stage_left_behind_writes_nothing_more(
    client: MeetingClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = await submit(client, settings)
    contexts: list[Context] = []

    async def endless(context: Context, done: dict[str, str]) -> str:
        contexts.append(context)
        await asyncio.sleep(600)
        return ""

    monkeypatch.setitem(workflow.TABLE, "decode", endless)  # type: ignore[arg-type]
    running = asyncio.create_task(run_stage(settings, folder, "decode", {}))
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
    jobs._note_error(folder, "export", "No space left on device")
    assert "export: No space left on device" in caplog.text


def test_a_dead_worker_is_taken_over_by_one_and_its_id_is_not_used_meanwhile(tmp_path: Path) -> None:
    with jobs._dead(tmp_path, "executor-0") as first, jobs._dead(tmp_path, "executor-0") as second:
        assert (first, second) == (True, False)
        executor, lock = jobs._claim_executor(tmp_path)
    with lock, jobs._dead(tmp_path, executor) as dead:
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
        await run_stage(settings, folder, "segment", {"decode": "x"}, worker_died=True)
    await client.cancel("one")
    await client.retry("one")
    assert folder.progress().stages == {"decode": finished}
    assert (await client.get("one")).status == "queued"


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
    asked = Request(id="same", options=Options(), input_sha256="0" * 64, input_name="a.wav", created_at=1.0)
    await client.submit(asked, upload)
