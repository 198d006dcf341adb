"""`duet transcribe` and `duet meeting`: thin clients of the running router."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from duet.edge import api_key
from duet.settings import Settings

FILES = {"transcript": "transcript.md", "reviewed": "reviewed.md", "timeline": "timeline.json", "srt": "subtitles.srt",
         "summary": "summary.md"}  # fmt: skip


def transcribe(settings: Settings, file: Path, response_format: str, quality: str) -> int:
    with _client(settings) as client, file.open("rb") as handle:
        fields = {"model": "auto", "response_format": response_format, "quality": quality}
        answer = _checked(
            lambda: client.post("/v1/audio/transcriptions", files={"file": (file.name, handle)}, data=fields)
        )
    if answer is None:
        return 1
    if reason := answer.headers.get("X-Duet-Route-Reason"):
        typer.echo(f"{answer.headers['X-Duet-Route']}: {reason}", err=True)
    typer.echo(answer.text.rstrip("\n"))
    return 0


def meeting(
    settings: Settings, file: Path, *, title: str, glossary: Path | None, speakers: int | None, out: Path
) -> int:
    fields: dict[str, Any] = {"title": title, "glossary": glossary.read_text(encoding="utf-8") if glossary else ""}
    if speakers is not None:
        fields["speakers"] = str(speakers)
    with _client(settings) as client:
        with file.open("rb") as handle:
            answer = _checked(lambda: client.post("/v1/meetings", files={"file": (file.name, handle)}, data=fields))
        if answer is None:
            return 1
        job = follow(client, answer.json()["id"])
        for warning in job["warnings"]:
            typer.echo(f"note: {warning}", err=True)
        if job["status"] != "succeeded":
            typer.echo(f"duet: the meeting {job['status']}: {job['error'] or ''}", err=True)
            return 1
        out.mkdir(parents=True, exist_ok=True)
        for name, url in job["outputs"].items():
            (out / FILES[name]).write_bytes(client.get(url).content)
            typer.echo(str(out / FILES[name]))
    return 0


def follow(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job at its end; meanwhile a progress bar fed by the job's events."""
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    job: dict[str, Any] = {}
    with (
        Progress(*columns, transient=True) as progress,
        client.stream("GET", f"/v1/meetings/{job_id}/events", timeout=None) as stream,
    ):
        bar = progress.add_task("queued", total=1.0)
        for line in stream.iter_lines():
            if line.startswith("data:"):
                job = json.loads(line[5:])
                progress.update(bar, completed=job["progress"], description=job["stage"] or job["status"])
    return job


def _client(settings: Settings) -> httpx.Client:
    headers = {"Authorization": f"Bearer {api_key(settings.home)}"}
    return httpx.Client(base_url=settings.router_url, headers=headers, timeout=3600.0, trust_env=False)


def _checked(send: Any) -> httpx.Response | None:
    """The answer; None, with the cause said, when there is none or it is an error."""
    try:
        answer: httpx.Response = send()
    except httpx.HTTPError as error:
        typer.echo(f"duet: the router does not answer ({type(error).__name__}): is `duet up` running?", err=True)
        return None
    if answer.is_success:
        return answer
    typer.echo(f"duet: {answer.json()['error']['message']}", err=True)
    return None
