"""What the tests of meetings share: a client of a home, a short recording submitted to it, and a worker as a process."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from duet.settings import Settings, to_environment
from pipelines.jobs.client import MeetingClient
from pipelines.jobs.store import jobs_folder
from pipelines.meeting.job import JobFolder, Options, Request
from tests import sounds


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[MeetingClient]:
    client = MeetingClient(settings)
    await client.open()
    try:
        yield client
    finally:
        await client.close()


def asked(job_id: str, name: str = "a.wav", options: Options | None = None) -> Request:
    return Request(id=job_id, options=options or Options(), input_sha256="0" * 64, input_name=name, created_at=1.0)


async def submit(
    client: MeetingClient,
    settings: Settings,
    job_id: str = "one",
    recording: Path | None = None,
    options: Options | None = None,
) -> JobFolder:
    """Submit `recording`, or a tone of one second, as a new job."""
    upload = settings.home / f"upload-{job_id}"
    if recording is None:
        upload.write_bytes(sounds.wav(sounds.pcm(sounds.tone(1.0))))
    else:
        shutil.copy(recording, upload)
    assert await client.submit(asked(job_id, recording.name if recording else "a.wav", options), upload)
    return JobFolder(jobs_folder(settings), job_id)


def start(settings: Settings, *arguments: str) -> subprocess.Popen[bytes]:
    """`python -m ARGUMENTS…` with these settings, its log in `worker.log` of the home."""
    environment = {**os.environ, **to_environment(settings)}
    with (settings.home / "worker.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-P", "-m", *arguments], env=environment, stdout=log, stderr=log)
