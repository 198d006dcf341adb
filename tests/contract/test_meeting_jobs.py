"""The job store between router and workers: what a killed or poisoned worker leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from duet.settings import Settings, load_settings
from pipelines.jobs import MeetingClient, jobs_folder
from pipelines.meeting.job import MAX_RUNS, GaveUp, JobFolder, Options, Progress, Request, StageTimes
from pipelines.meeting.workflow import run_stage


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
    upload.write_bytes(b"RIFF")
    asked = Request(id=job_id, options=Options(), input_sha256="0" * 64, input_name="a.wav", created_at=1.0)
    assert await client.submit(asked, upload)
    return JobFolder(jobs_folder(settings), job_id)


async def test_a_stage_that_never_ends_is_given_up_and_a_retry_begins_anew(
    client: MeetingClient, settings: Settings
) -> None:
    folder = await submit(client, settings)
    finished = StageTimes(1.0, 2.0)
    folder.write_progress(
        Progress(stage="segment", stages={"decode": finished, "segment": StageTimes(3.0, None, MAX_RUNS)})
    )
    with pytest.raises(GaveUp, match=f"begun {MAX_RUNS} times"):
        await run_stage(settings, folder, "segment", {"decode": "x"})
    await client.cancel("one")
    await client.retry("one")
    assert folder.progress().stages == {"decode": finished}
    assert (await client.get("one")).status == "queued"


async def test_the_mark_of_a_killed_worker_is_not_waited_for(client: MeetingClient, settings: Settings) -> None:
    folder = await submit(client, settings)
    folder.mark_running("executor-7")  # nobody holds its lock
    async with asyncio.timeout(3):
        await client.delete("one")
    assert not folder.path.exists()


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
