"""`duet transcribe` and `duet meeting`: thin clients of the running router."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from duet.cli.failures import failed, key_or_exit, reason
from duet.client import offered_name, sync_client
from duet.errors import InvalidRequest
from duet.logs import printable
from duet.settings import Settings
from speech.text import read

TIMEOUT = httpx.Timeout(3600.0, connect=5.0)
"""In seconds. A long recording is transcribed before the answer begins."""


def transcribe(settings: Settings, file: Path, response_format: str, quality: str, *, strict: bool) -> int:
    """Print the transcript; the route and what the caller must know of the audio go to standard error. Returns the exit code."""
    fields = {"model": "auto", "response_format": response_format, "quality": quality, "strict": str(strict).lower()}
    with _router(settings) as client, file.open("rb") as handle:
        answer = client.post("/v1/audio/transcriptions", files={"file": (file.name, handle)}, data=fields)
        answer.raise_for_status()
    if why := answer.headers.get("X-Duet-Route-Reason"):
        typer.echo(f"{answer.headers['X-Duet-Route']}: {why}", err=True)
    if warning := answer.headers.get("X-Duet-Warning"):
        typer.echo(printable(f"note: {warning}"), err=True)
    typer.echo(answer.text.rstrip("\n"))
    return 0


def meeting(
    settings: Settings,
    recording: Path,
    *,
    title: str,
    glossary: Path | None,
    speakers: int | None,
    strict: bool,
    out: Path,
) -> int:
    """Submit a recording, follow the job, and write its outputs into `out`. Returns the exit code.

    The same recording with the same options is the same job: the command can be repeated to follow it again.
    """
    fields: dict[str, Any] = {
        "title": title,
        "glossary": _text(glossary) if glossary else "",
        "strict": str(strict).lower(),
    }
    if speakers is not None:
        fields["speakers"] = str(speakers)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise failed(f"{out}: {error.strerror}") from error
    with _router(settings) as client:
        with recording.open("rb") as handle:
            answer = client.post("/v1/meetings", files={"file": (recording.name, handle)}, data=fields)
        job_id = answer.raise_for_status().json()["id"]
        try:
            job = follow(client, job_id)
        except (KeyboardInterrupt, httpx.TransportError):
            typer.echo(f"duet: meeting {job_id} goes on without us: the same command follows it again", err=True)
            raise
        for warning in job["warnings"]:
            typer.echo(printable(f"note: {warning}"), err=True)
        if job["status"] != "succeeded":
            raise failed(f"the meeting {job['status']}: {job['error'] or ''}")
        for url in job["outputs"].values():
            output = client.get(url).raise_for_status()
            file = out / offered_name(output).removeprefix(f"{job_id}-")
            file.write_bytes(output.content)
            typer.echo(str(file))
    return 0


def follow(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job when it has ended. Meanwhile the job's events move a progress bar."""
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    with (
        Progress(*columns, transient=True) as progress,
        client.stream("GET", f"/v1/meetings/{job_id}/events", timeout=None) as stream,
    ):
        if stream.is_error:
            stream.read()  # while it is open: its body says why
        stream.raise_for_status()
        bar = progress.add_task("queued", total=1.0)
        for line in stream.iter_lines():
            if line.startswith("data:"):
                job = json.loads(line[5:])
                progress.update(bar, completed=job["progress"], description=job["stage"] or job["status"])
    ended: dict[str, Any] = client.get(f"/v1/meetings/{job_id}").raise_for_status().json()
    return ended


@contextmanager
def _router(settings: Settings) -> Iterator[httpx.Client]:
    """A client of the router. A request that fails inside ends the command with the cause."""
    with sync_client(key_or_exit(settings.home), url=settings.router_url, timeout=TIMEOUT) as client:
        try:
            yield client
        except httpx.HTTPStatusError as error:
            raise failed(reason(error.response)) from error
        except httpx.HTTPError as error:
            cause = f"the router does not answer at {settings.router_url} ({type(error).__name__})"
            raise failed(f"{cause}: is `duet up` running?") from error


def _text(file: Path) -> str:
    try:
        return read(file.read_bytes(), name=str(file))
    except InvalidRequest as error:
        raise failed(error.message) from error
