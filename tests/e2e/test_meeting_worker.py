"""The meeting worker as a process: what takes it down each time, and how it stops. No engine is needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from signal import SIGKILL

import pytest

from duet.settings import Settings
from pipelines.jobs.client import MeetingClient
from pipelines.meeting.job import MAX_DEATHS
from tests.conftest import HomeSettings
from tests.fakes.meetings import opened, start, submit


@pytest.fixture
def settings(home_settings: HomeSettings) -> Settings:
    return home_settings(embedded=True)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[MeetingClient]:
    async with opened(settings) as client:
        yield client


async def test_a_job_that_takes_every_worker_down_fails_and_says_why(client: MeetingClient, settings: Settings) -> None:
    await submit(client, settings)
    for _ in range(MAX_DEATHS):
        poisoned = start(settings, "tests.fakes.poisoned_worker", "decode")
        try:
            assert await asyncio.to_thread(poisoned.wait, 60) == -SIGKILL
        finally:
            poisoned.kill()
            poisoned.wait()
        assert (await client.get("one")).status == "running"
    worker = start(settings, "tests.fakes.poisoned_worker", "decode")
    try:
        async with asyncio.timeout(60):
            *_, last = [job async for job in client.events("one")]
        assert last.status == "failed"
        assert last.progress.error == (
            f"decode: the worker died {MAX_DEATHS} times in this stage: killed, out of memory, or by this recording"
        )
        assert worker.poll() is None
    finally:
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, 60) == 0


async def test_a_worker_that_is_stopped_in_a_stage_ends_at_once_and_has_not_died(
    client: MeetingClient, settings: Settings
) -> None:
    folder = await submit(client, settings)
    mark = settings.home / "at-decode"
    worker = start(settings, "tests.fakes.paused_worker", "decode", str(mark))
    try:
        async with asyncio.timeout(60):
            while not mark.exists():
                await asyncio.sleep(0.05)
        assert folder.is_locked
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, 60) == 0  # the stage would go on for ten minutes
    finally:
        worker.kill()
        worker.wait()
    assert not folder.is_locked
    with folder.locked() as worker_died:
        assert not worker_died
