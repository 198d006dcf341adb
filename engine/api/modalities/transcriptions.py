"""`POST /v1/audio/transcriptions` for speech models of the engine (OpenAI's dialect, with hotwords)."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from fastapi import APIRouter, Depends, File, Form, Request, Response

from duet.errors import Busy, InvalidRequest
from duet.http.disconnect import unless_gone
from duet.http.forms import FormRoute
from duet.http.parts import Upload
from duet.wire import Transcript
from engine.api.shared.caller import caller_of
from engine.api.shared.headers import answer_headers
from engine.api.shared.ports import ModelsDep, WorkDep
from engine.types import Operators, Transcribed, TranscriptionRequest, Work, only
from speech.decoding.child.messages import Channels
from speech.decoding.decoder import Decoded, Decoder
from speech.decoding.pcm import open_pcm
from speech.formats import MEDIA_TYPES, ResponseFormat, Shown, notice_headers, rendered
from speech.keywords import parse_keywords
from speech.languages import language_of
from speech.level import NO_SPEECH, audible
from speech.recognisers.stitching import merged
from speech.text import read

router = APIRouter(route_class=FormRoute)

KNOWN = frozenset(
    {"file", "model", "prompt", "language", "response_format", "temperature", "hotwords", "keywords", "keywords[]"}
    | {"timestamp_granularities[]", "strict", "channels"}
)
REFUSED = ("stream", "include[]", "chunking_strategy", "known_speaker_names[]")
MAX_PROMPT_CHARACTERS = 8000
MEDIA = MEDIA_TYPES | {"srt": "text/plain"}
"""The engine names SRT plain text; the router names it by its own type."""


class Uploads:
    """Decodes recordings. That costs time and memory before the pool could refuse the request, so a recording that is being
    decoded takes one of the engine's places for requests."""

    def __init__(self, operators: Operators, *, max_requests: int, max_seconds: float) -> None:
        self._operators, self._max_requests = operators, max_requests
        self._decoder = Decoder(max_seconds=max_seconds)
        self._decoding = 0

    async def decoded(self, file: Upload, *, strict: bool, channels: Channels) -> Decoded:
        """Files of the samples. Raises `Busy`, `DiskFull`, and `InvalidRequest` for what is no audio or too long."""
        under_way = self._decoding + sum(model.running + model.waiting for model in self._operators.pool().models)
        if under_way >= self._max_requests:
            raise Busy(f"{under_way} requests are under way already")
        self._decoding += 1
        try:
            target = file.path.with_name("decoded.pcm")
            return await self._decoder.decode(file.path, target, strict=strict, channels=channels)
        finally:
            self._decoding -= 1

    async def close(self) -> None:
        await self._decoder.close()


def _as_float(path: Path) -> bytes:
    """Float32 mono at 16 kHz."""
    return (open_pcm(path).astype("<f4") / np.float32(32768.0)).tobytes()


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
    language: Annotated[str | None, Form()] = None,
    response_format: Annotated[ResponseFormat, Form()] = "json",
    temperature: Annotated[float, Form(ge=0, le=1)] = 0.0,
    hotwords: Annotated[list[str] | None, Form()] = None,
    keywords: Annotated[list[str] | None, Form()] = None,
    keyword_list: Annotated[list[str] | None, Form(alias="keywords[]")] = None,
    strict: Annotated[bool, Form()] = False,
    channels: Annotated[Channels, Form()] = "mix",
) -> Response:
    """The text of a recording (wav, mp3, m4a, flac, ogg, webm). Hotwords may be repeated, or one list with commas.
    `channels=each` recognises each channel for itself."""
    form = await request.form()
    if refused := [name for name in REFUSED if form.get(name) not in (None, "", "false", "auto")]:
        raise InvalidRequest(f"{refused[0]} is not supported by the engine", param=refused[0])
    if set(form.getlist("timestamp_granularities[]")) - {"segment"}:
        raise InvalidRequest(
            "segments have times, single words have none: timestamp_granularities[] can only be segment",
            param="timestamp_granularities[]",
        )
    language = language_of(language)
    info, caller = await models.resolve(model), caller_of(request)
    asked = TranscriptionRequest(
        id="",
        model=info.id,
        audio=b"",
        prompt=read(prompt or "", name="prompt").strip() or None,
        hotwords=parse_keywords([*(hotwords or []), *(keywords or []), *(keyword_list or [])], name="hotwords"),
        language=language,
        temperature=temperature,
        tenant=caller.tenant,
        priority=caller.priority,
        deadline=caller.deadline,
    )
    decoded = await unless_gone(request, uploads.decoded(file, strict=strict, channels=channels))
    transcript, warnings = await unless_gone(request, _heard(work, asked, decoded, channels))
    ignored = sorted(name for name in form if name not in KNOWN and name not in REFUSED)
    headers = answer_headers(info, ignored)
    headers |= notice_headers(truncated=decoded.truncated is not None, warnings=warnings)
    shown = Shown(language=language, temperature=temperature, warnings=warnings)
    body = rendered(transcript, response_format, shown)
    return Response(body, headers=headers, media_type=MEDIA[response_format])


async def _heard(
    work: Work, asked: TranscriptionRequest, decoded: Decoded, channels: Channels
) -> tuple[Transcript, list[str]]:
    """The transcript, and what the caller must know of the audio. Only one file of samples is in memory."""
    heard = []
    for path in decoded.files:
        audio = await asyncio.to_thread(_as_float, path)
        request = msgspec.structs.replace(asked, id=secrets.token_hex(8), audio=audio)
        heard.append((await only(work.run(request), Transcribed)).transcript)
    warnings = [*decoded.warnings, *await asyncio.to_thread(_unheard, heard, decoded.files)]
    return heard[0] if channels == "mix" else merged(heard), warnings


def _unheard(heard: Sequence[Transcript], files: Sequence[Path]) -> list[str]:
    """What to say of channels that are heard and have no text."""
    mute = [i for i, transcript in enumerate(heard) if not transcript.text and audible(open_pcm(files[i]))]
    return [NO_SPEECH if len(files) == 1 else f"channel {i + 1}: {NO_SPEECH}" for i in mute]
