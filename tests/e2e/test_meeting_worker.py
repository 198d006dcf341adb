"""The meeting worker as a process: what takes it down each time, and how it stops. No engine is needed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGKILL

import pytest

from duet.settings import Settings, load_settings, to_environment
from pipelines.jobs import MeetingClient, jobs_folder
from pipelines.meeting.job import MAX_DEATHS, JobFolder, Options, Request
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


def start(settings: Settings, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **to_environment(settings)}
    with (settings.home / "worker.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-P", "-m", *arguments], env=environment, stdout=log, stderr=log)


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
        assert folder.is_held
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, 60) == 0  # the stage would go on for ten minutes
    finally:
        worker.kill()
        worker.wait()
    assert not folder.is_held
    with folder.held() as worker_died:
        assert not worker_died
