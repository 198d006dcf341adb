"""A meeting worker that is killed at every stage loses nothing and does nothing twice."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import models
from duet.settings import Settings, load_settings, to_environment
from duet.testing.stack import Stack
from pipelines.jobs import MeetingClient
from pipelines.meeting.job import OUTPUTS, STAGES, Options, Request

pytestmark = pytest.mark.timeout(600)  # nine workers start in the longest test, and all of a meeting is done twice

JOB = "killtest"
RECORDING = models.CARDS / "demo" / "meeting.flac"
GLOSSARY = "\n".join(json.loads((models.CARDS / "demo" / "meeting.json").read_text(encoding="utf-8"))["glossary"])


def home_beside(stack: Stack, folder: Path) -> Settings:
    """Settings of a home of its own that shares the stack's engine."""
    folder.mkdir(mode=0o700)
    shutil.copy(stack.home / "api_key", folder / "api_key")
    return load_settings({"DUET_HOME": str(folder)}, embedded=True, router={"engine_url": stack.engine_url})


def start(settings: Settings, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, **to_environment(settings)}
    with (settings.home / "worker.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-P", "-m", *arguments], env=environment, stdout=log, stderr=log)


def stop(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    worker.wait(60)


async def submit(client: MeetingClient, settings: Settings, job_id: str = JOB) -> None:
    upload = settings.home / "upload"
    shutil.copy(RECORDING, upload)
    options = Options(title="Kill test", glossary=GLOSSARY)
    await client.submit(
        Request(id=job_id, options=options, input_sha256="0" * 64, input_name="meeting.flac", created_at=1.0), upload
    )


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
    client = MeetingClient(settings)
    await client.open()
    worker = start(settings, "pipelines")
    try:
        await submit(client, settings)
        await until_done(client)
    finally:
        stop(worker)
        await client.close()
    return outputs(settings)


async def test_a_worker_killed_at_every_stage_gives_the_same_outputs_and_repeats_nothing(
    stack: Stack, tmp_path: Path
) -> None:
    expected = await run_undisturbed(home_beside(stack, tmp_path / "calm"))
    settings = home_beside(stack, tmp_path / "killed")
    client = MeetingClient(settings)
    await client.open()
    written: dict[str, dict[Path, int]] = {}
    artifacts = settings.home / "meetings" / "jobs" / JOB / "artifacts"
    try:
        await submit(client, settings)
        for stage in STAGES:
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
    finally:
        await client.close()
    # Killed before its end was recorded, each stage began once more; what had been recorded never did.
    assert {name: times.runs for name, times in progress.stages.items()} == dict.fromkeys(STAGES, 2)
    for stage, files in written.items():
        assert {path: path.stat().st_mtime_ns for path in files} == files, f"{stage}: an artifact was made again"
    assert outputs(settings) == expected


async def test_a_second_worker_takes_over_the_job_of_a_dead_one(stack: Stack, tmp_path: Path) -> None:
    settings = home_beside(stack, tmp_path / "home")
    client = MeetingClient(settings)
    await client.open()
    mark = tmp_path / "at-transcribe"
    first = start(settings, "tests.fakes.paused_worker", "transcribe", str(mark))
    try:
        await submit(client, settings)
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
        await client.close()


async def test_delete_while_it_runs_removes_everything(stack: Stack, tmp_path: Path) -> None:
    settings = home_beside(stack, tmp_path / "home")
    client = MeetingClient(settings)
    await client.open()
    mark = tmp_path / "at-diarize"
    worker = start(settings, "tests.fakes.paused_worker", "diarize", str(mark))
    try:
        await submit(client, settings)
        async with asyncio.timeout(120):
            while not mark.exists():
                await asyncio.sleep(0.05)
        await client.delete(JOB)
        assert not (settings.home / "meetings" / "jobs" / JOB).exists()
        assert await client.list(limit=10, offset=0) == []
    finally:
        stop(worker)
        await client.close()
