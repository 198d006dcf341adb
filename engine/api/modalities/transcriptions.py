"""`POST /v1/audio/transcriptions` for speech models of the engine (OpenAI's dialect, with hotwords)."""

from __future__ import annotations

import asyncio
import secrets
from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Request, Response

from duet.errors import Busy, InvalidRequest
from duet.http.disconnect import unless_gone
from duet.http.forms import FormRoute
from duet.http.parts import Upload
from engine.api.shared.caller import caller_of
from engine.api.shared.headers import answer_headers
from engine.api.shared.ports import ModelsDep, WorkDep
from engine.types import Operators, Transcribed, TranscriptionRequest, only
from speech.decode import decode
from speech.formats import MEDIA_TYPES, ResponseFormat, rendered
from speech.keywords import parse_keywords
from speech.text import read

router = APIRouter(route_class=FormRoute)

KNOWN = frozenset(
    {"file", "model", "prompt", "language", "response_format", "temperature", "hotwords", "keywords", "keywords[]"}
    | {"timestamp_granularities[]"}
)
REFUSED = ("stream", "include[]", "chunking_strategy", "known_speaker_names[]")
MAX_PROMPT_CHARACTERS = 8000
MEDIA = MEDIA_TYPES | {"srt": "text/plain"}
"""The engine names SRT plain text; the router names it by its own type."""


class Uploads:
    """Decodes recordings. That costs time and memory before the pool could refuse the request, so a recording that is being
    decoded takes one of the engine's places for requests."""

    def __init__(self, operators: Operators, *, max_requests: int, max_seconds: float) -> None:
        self._operators, self._max_requests, self._max_seconds = operators, max_requests, max_seconds
        self._decoding = 0

    async def decoded(self, file: Upload) -> bytes:
        """The samples as float32 mono at 16 kHz. Raises `Busy`, and `InvalidRequest` for what is no audio or too long."""
        under_way = self._decoding + sum(model.running + model.waiting for model in self._operators.pool().models)
        if under_way >= self._max_requests:
            raise Busy(f"{under_way} requests are under way already")
        self._decoding += 1
        try:
            samples = await asyncio.to_thread(decode, file.path, max_seconds=self._max_seconds)
        finally:
            self._decoding -= 1
        return samples.astype("<f4").tobytes()


def _uploads(request: Request) -> Uploads:
    uploads: Uploads = request.app.state.uploads
    return uploads


UploadsDep = Annotated[Uploads, Depends(_uploads)]


@router.post("/v1/audio/transcriptions")
async def transcriptions(
    request: Request,
    work: WorkDep,
    models: ModelsDep,
    uploads: UploadsDep,
    file: Annotated[Upload, File()],
    model: Annotated[str, Form(min_length=1, max_length=512)],
    prompt: Annotated[str | None, Form(max_length=MAX_PROMPT_CHARACTERS)] = None,
    language: Annotated[str | None, Form(max_length=32)] = None,
    response_format: Annotated[ResponseFormat, Form()] = "json",
    temperature: Annotated[float, Form(ge=0, le=1)] = 0.0,
    hotwords: Annotated[list[str] | None, Form()] = None,
    keywords: Annotated[list[str] | None, Form()] = None,
    keyword_list: Annotated[list[str] | None, Form(alias="keywords[]")] = None,
) -> Response:
    """The text of a recording (wav, mp3, m4a, flac, ogg, webm). Hotwords may be repeated, or one list with commas."""
    form = await request.form()
    if refused := [name for name in REFUSED if form.get(name) not in (None, "", "false", "auto")]:
        raise InvalidRequest(f"{refused[0]} is not supported by the engine", param=refused[0])
    if set(form.getlist("timestamp_granularities[]")) - {"segment"}:
        raise InvalidRequest(
            "segments have times, single words have none: timestamp_granularities[] can only be segment",
            param="timestamp_granularities[]",
        )
    info, caller = models.resolve(model), caller_of(request)
    audio = await unless_gone(request, uploads.decoded(file))
    asked = TranscriptionRequest(
        id=secrets.token_hex(8),
        model=info.id,
        audio=audio,
        prompt=read(prompt or "", name="prompt").strip() or None,
        hotwords=parse_keywords([*(hotwords or []), *(keywords or []), *(keyword_list or [])], name="hotwords"),
        language=language or None,
        temperature=temperature,
        tenant=caller.tenant,
        priority=caller.priority,
        deadline=caller.deadline,
    )
    result = await unless_gone(request, only(work.run(asked), Transcribed))
    ignored = sorted(name for name in form if name not in KNOWN and name not in REFUSED)
    headers = answer_headers(info, ignored)
    return Response(rendered(result.transcript, response_format), headers=headers, media_type=MEDIA[response_format])
