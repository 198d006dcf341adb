"""A meeting worker that is killed in a stage loses nothing and does nothing twice."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

import models
from duet.settings import Settings, load_settings
from duet.testing.stack import Stack
from pipelines.jobs.client import MeetingClient
from pipelines.meeting.job import OUTPUTS, Options
from pipelines.meeting.stages import STAGES
from tests.fakes.meetings import opened, start, submit

pytestmark = pytest.mark.timeout(600)  # nine workers start in the longest test, and all of a meeting is done twice

JOB = "killtest"
RECORDING = models.CARDS / "demo" / "meeting.flac"
GLOSSARY = "\n".join(json.loads((models.CARDS / "demo" / "meeting.json").read_text(encoding="utf-8"))["glossary"])


def home_beside(stack: Stack, folder: Path) -> Settings:
    """Settings of a home of its own that shares the stack's engine."""
    folder.mkdir(mode=0o700)
    shutil.copy(stack.home / "api_key", folder / "api_key")
    return load_settings({"DUET_HOME": str(folder)}, embedded=True, router={"engine_url": stack.engine_url})


def stop(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    worker.wait(60)


async def submit_meeting(client: MeetingClient, settings: Settings) -> None:
    await submit(client, settings, JOB, RECORDING, Options(title="Kill test", glossary=GLOSSARY))


async def until_done(client: MeetingClient, seconds: float = 300) -> None:
    async with asyncio.timeout(seconds):
        async for job in client.events(JOB):
            last = job
    assert last.status == "succeeded", last.progress.error


def kill_when(process: subprocess.Popen[bytes], mark: Path) -> None:
    deadline = time.monotonic() + 120
    while not mark.exists():
        assert process.poll() is None, "the worker ended by itself"
        assert time.monotonic() < deadline, f"{mark.name} was not reached"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def outputs(settings: Settings) -> dict[str, bytes]:
    folder = settings.home / "meetings" / "jobs" / JOB / "outputs"
    return {name: (folder / file).read_bytes() for name, (file, _) in OUTPUTS.items()}


async def run_undisturbed(settings: Settings) -> dict[str, bytes]:
    async with opened(settings) as client:
        worker = start(settings, "pipelines")
        try:
            await submit_meeting(client, settings)
            await until_done(client)
        finally:
            stop(worker)
    return outputs(settings)


ALL = tuple(stage.name for stage in STAGES)


@pytest.mark.parametrize(
    "killed", [("decode", "transcribe", "export"), pytest.param(ALL, marks=pytest.mark.long)], ids=["three", "all"]
)
async def test_a_worker_killed_in_stages_gives_the_same_outputs_and_repeats_nothing(
    stack: Stack, tmp_path: Path, killed: tuple[str, ...]
) -> None:
    expected = await run_undisturbed(home_beside(stack, tmp_path / "calm"))
    settings = home_beside(stack, tmp_path / "killed")
    written: dict[str, dict[Path, int]] = {}
    artifacts = settings.home / "meetings" / "jobs" / JOB / "artifacts"
    async with opened(settings) as client:
        await submit_meeting(client, settings)
        for stage in killed:
            mark = tmp_path / f"at-{stage}"
            worker = start(settings, "tests.fakes.paused_worker", stage, str(mark))
            await asyncio.to_thread(kill_when, worker, mark)
            job = await client.get(JOB)
            assert (job.status, job.progress.stage) == ("running", stage)
            written[stage] = {path: path.stat().st_mtime_ns for path in artifacts.iterdir()}
        worker = start(settings, "pipelines")
        try:
            await until_done(client)
        finally:
            stop(worker)
        progress = (await client.get(JOB)).progress
    # Killed before its end was recorded, a stage began once more; a stage whose end was recorded never did.
    assert {name: times.runs for name, times in progress.stages.items()} == {name: 1 + (name in killed) for name in ALL}
    for stage, files in written.items():
        assert {path: path.stat().st_mtime_ns for path in files} == files, f"{stage}: an artifact was made again"
    assert outputs(settings) == expected


async def test_a_second_worker_takes_over_the_job_of_a_dead_one(stack: Stack, tmp_path: Path) -> None:
    settings = home_beside(stack, tmp_path / "home")
    mark = tmp_path / "at-transcribe"
    async with opened(settings) as client:
        first = start(settings, "tests.fakes.paused_worker", "transcribe", str(mark))
        try:
            await submit_meeting(client, settings)
            while not mark.exists():
                assert first.poll() is None
                await asyncio.sleep(0.05)
            # The second one lives while the first dies: it has another executor id, and must notice.
            second = start(settings, "pipelines")
            try:
                lock = settings.home / "meetings" / "executor-1.lock"
                async with asyncio.timeout(120):
                    while not lock.exists():
                        await asyncio.sleep(0.05)
                first.kill()
                first.wait()
                await until_done(client)
            finally:
                stop(second)
            assert (await client.get(JOB)).progress.stages["decode"].runs == 1
        finally:
            first.kill()
            first.wait()


async def test_delete_while_it_runs_removes_everything(stack: Stack, tmp_path: Path) -> None:
    settings = home_beside(stack, tmp_path / "home")
    mark = tmp_path / "at-diarize"
    async with opened(settings) as client:
        worker = start(settings, "tests.fakes.paused_worker", "diarize", str(mark))
        try:
            await submit_meeting(client, settings)
            async with asyncio.timeout(120):
                while not mark.exists():
                    await asyncio.sleep(0.05)
            await client.delete(JOB)
            assert not (settings.home / "meetings" / "jobs" / JOB).exists()
            assert await client.list(limit=10, offset=0) == []
        finally:
            stop(worker)
