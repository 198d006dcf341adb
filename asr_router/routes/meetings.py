"""`/v1/meetings`: submit a recording, follow it, fetch the five outputs, delete everything."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, File, Form, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from sse_starlette import EventSourceResponse

from duet.errors import Conflict, DuetError, NotFound
from duet.http.forms import FormRoute
from duet.http.parts import Upload
from pipelines.glossary import parse
from pipelines.jobs.client import ENDED, Job, MeetingClient
from pipelines.meeting.job import OUTPUTS, Options
from pipelines.meeting.job import Request as JobRequest
from speech.decoding.decoder import Decoder
from speech.languages import language_of
from speech.text import read

router = APIRouter(route_class=FormRoute)

MAX_TITLE, MAX_GLOSSARY_CHARACTERS, MAX_SPEAKERS = 200, 50_000, 32
KNOWN = frozenset({"file", "title", "glossary", "language", "speakers", "quality", "strict"})


def _client(request: Request) -> MeetingClient:
    """Raises the error that says why there is none."""
    found: MeetingClient | DuetError = request.app.state.meetings
    if isinstance(found, DuetError):
        raise type(found)(found.message, retry_after_seconds=found.retry_after_seconds)
    return found


@router.post("/v1/meetings", status_code=202)
async def submit(
    request: Request,
    file: Annotated[Upload, File()],
    title: Annotated[str, Form(max_length=MAX_TITLE)] = "",
    glossary: Annotated[str, Form(max_length=MAX_GLOSSARY_CHARACTERS)] = "",
    language: Annotated[str | None, Form()] = None,
    speakers: Annotated[int | None, Form(ge=1, le=MAX_SPEAKERS)] = None,
    quality: Annotated[Literal["auto", "fast", "high"], Form()] = "auto",
    strict: Annotated[bool, Form()] = False,
) -> Response:
    """202 with the job. The same recording with the same options is the same job. `strict` lets it fail if the recording is
    truncated."""
    client = _client(request)
    glossary = read(glossary, name="glossary")
    parse(glossary)
    options = Options(
        title=read(title, name="title").strip(),
        glossary=glossary,
        language=language_of(language),
        speakers=speakers,
        quality=quality,
        strict=strict,
    )
    form = await request.form()
    ignored = sorted(name for name in form if name not in KNOWN and name.isascii() and name.isprintable())
    decoder: Decoder = request.app.state.transcriber.decoder
    await decoder.probe(file.path)  # what could never be processed is refused before the job is accepted
    digest = await asyncio.to_thread(_digest, file.path)
    job = JobRequest(
        id=hashlib.sha256(digest.encode() + _identity(options)).hexdigest()[:24],
        options=options,
        input_sha256=digest,
        input_name=Path(file.filename or "").name[:200],
        created_at=time.time(),
    )
    created = await client.submit(job, file.path)
    shown = _shown(await client.get(job.id))
    headers = {"Location": f"/v1/meetings/{job.id}", "X-Duet-Created": str(created).lower()}
    if ignored:
        headers["X-Duet-Ignored"] = ", ".join(ignored)[:1000]
    return JSONResponse(shown, 202, headers)


def _identity(options: Options) -> bytes:
    """What tells two jobs for one recording apart. An option that came later counts only where it is set, so that jobs of
    older versions keep their ids."""
    given = msgspec.to_builtins(options)
    return msgspec.json.encode({name: value for name, value in given.items() if name != "strict" or value})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@router.get("/v1/meetings")
async def list_meetings(
    request: Request, limit: Annotated[int, Query(ge=1, le=200)] = 50, offset: Annotated[int, Query(ge=0)] = 0
) -> dict[str, Any]:
    """Newest first."""
    jobs = await _client(request).list(limit=limit, offset=offset)
    return {"object": "list", "data": [_shown(job) for job in jobs]}


@router.get("/v1/meetings/{meeting_id}")
async def get_meeting(meeting_id: str, request: Request) -> dict[str, Any]:
    return _shown(await _client(request).get(meeting_id))


@router.get("/v1/meetings/{meeting_id}/events")
async def events(meeting_id: str, request: Request) -> Response:
    """Server-sent events: `progress` whenever something changes, then one `succeeded`, `failed` or `cancelled`."""
    client = _client(request)
    await client.get(meeting_id)  # 404 before the stream begins

    async def frames() -> AsyncIterator[dict[str, str]]:
        number = 0
        try:
            async for job in client.events(meeting_id):
                number += 1
                name = job.status if job.status in ENDED else "progress"
                yield {"id": str(number), "event": name, "data": msgspec.json.encode(_shown(job)).decode()}
        except NotFound:
            yield {"event": "deleted", "data": msgspec.json.encode({"id": meeting_id}).decode()}

    return EventSourceResponse(frames(), ping=10)


@router.get("/v1/meetings/{meeting_id}/outputs/{name}")
async def output(meeting_id: str, name: str, request: Request) -> Response:
    client = _client(request)
    if name not in OUTPUTS:
        raise NotFound(f"there is no output {name!r}; there are: {', '.join(OUTPUTS)}", param="name")
    job = await client.get(meeting_id)
    path = client.folder(meeting_id).output(name)
    if not path.is_file() or job.status not in ENDED:
        raise Conflict(f"the meeting is {job.status}: there is no {name} yet")
    return FileResponse(path, media_type=OUTPUTS[name][1], filename=f"{meeting_id}-{path.name}")


@router.post("/v1/meetings/{meeting_id}/cancel")
async def cancel(meeting_id: str, request: Request) -> dict[str, Any]:
    client = _client(request)
    await client.cancel(meeting_id)
    return _shown(await client.get(meeting_id))


@router.post("/v1/meetings/{meeting_id}/retry", status_code=202)
async def retry(meeting_id: str, request: Request) -> dict[str, Any]:
    client = _client(request)
    await client.retry(meeting_id)
    return _shown(await client.get(meeting_id))


@router.delete("/v1/meetings/{meeting_id}", status_code=204)
async def delete(meeting_id: str, request: Request) -> Response:
    """Cancels it if it runs; removes the recording and everything derived from it."""
    await _client(request).delete(meeting_id)
    return Response(status_code=204)


def _shown(job: Job) -> dict[str, Any]:
    progress, request = job.progress, job.request
    ready = job.status == "succeeded"
    return {
        "id": request.id,
        "object": "meeting",
        "status": job.status,
        "title": request.options.title,
        "file": request.input_name,
        "created_at": round(request.created_at),
        "duration": progress.audio_seconds,
        "stage": None if ready else progress.stage,
        "progress": 1.0 if ready else progress.overall,
        "stages": [
            {
                "name": name,
                "runs": times.runs,
                "seconds": None if times.finished_at is None else round(times.finished_at - times.started_at, 3),
            }
            for name, times in progress.stages.items()
        ],
        "warnings": progress.warnings,
        "error": (progress.error or "it ended without a word; the worker's log says more")
        if job.status == "failed"
        else None,
        "outputs": {name: f"/v1/meetings/{request.id}/outputs/{name}" for name in OUTPUTS} if ready else {},
    }
