"""`POST /v1/audio/transcriptions` (https://platform.openai.com/docs/api-reference/audio/createTranscription)."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.datastructures import FormData

from asr_router.backends.port import Options
from asr_router.routing import BackendName, Quality, Wish
from asr_router.service import Outcome, TranscriptionService
from duet.errors import InvalidRequest, ModelNotFound
from speech import formats

logger = logging.getLogger(__name__)
router = APIRouter()

ResponseFormat = Literal["json", "text", "verbose_json", "srt", "vtt"]
MODELS: dict[str, BackendName | None] = {
    "auto": None, "whisper-1": None, "sensevoice": "sensevoice", "qwen3-asr": "qwen3_asr",
}  # fmt: skip
"""`whisper-1` is what stock clients send by default: taken as auto."""
KNOWN = frozenset(
    {"file", "model", "language", "prompt", "response_format", "temperature", "quality", "keywords", "keywords[]",
     "hotwords", "timestamp_granularities[]", "timestamp_granularities"}
)  # fmt: skip
REFUSED = (
    "stream", "include[]", "include", "chunking_strategy", "known_speaker_names[]", "known_speaker_references[]", "languages[]",
)  # fmt: skip
MAX_KEYWORDS, MAX_KEYWORD_CHARACTERS, MAX_PROMPT_CHARACTERS = 500, 64, 8000


@router.post("/v1/audio/transcriptions")
async def transcriptions(
    request: Request,
    file: Annotated[UploadFile, File()],
    model: Annotated[str, Form(min_length=1, max_length=128)] = "auto",
    language: Annotated[str | None, Form(pattern=r"^([A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*)?$")] = None,
    prompt: Annotated[str | None, Form(max_length=MAX_PROMPT_CHARACTERS)] = None,
    response_format: Annotated[ResponseFormat, Form()] = "json",
    temperature: Annotated[float, Form(ge=0, le=1)] = 0.0,
    quality: Annotated[Quality, Form()] = "auto",
) -> Response:
    form = await request.form()
    _refuse(form)
    words = _wants_words(form, response_format)
    keywords = parse_keywords([str(v) for name in ("keywords[]", "keywords", "hotwords") for v in form.getlist(name)])
    code = (language or "").lower().partition("-")[0] or None
    wish = Wish(_pinned(request, model), code, quality, keywords=bool(keywords), prompt=bool(prompt))
    options = Options(code, prompt or None, keywords, temperature)
    service: TranscriptionService = request.app.state.transcriptions
    async with request.app.state.spool.take(file) as path:
        outcome = await _unless_gone(request, service, path, wish, options)
    ignored = sorted(name for name in form if name not in KNOWN and name not in REFUSED)
    headers = _headers(outcome, ignored)
    logger.info("transcribed", extra={"action": "transcribed", **_log_fields(outcome)})
    return _rendered(outcome, response_format, words=words, headers=headers)


def parse_keywords(given: list[str]) -> tuple[str, ...]:
    """Repeated fields, one field with commas, or a JSON list. Raises `InvalidRequest` naming `keywords`."""
    words: list[str] = []
    for item in given:
        if item.lstrip().startswith("["):
            try:
                words += [str(word) for word in json.loads(item)]
            except (ValueError, TypeError) as error:
                raise InvalidRequest("keywords is no JSON list", param="keywords") from error
        else:
            words += item.replace("\n", ",").split(",")
    cleaned = tuple(dict.fromkeys(word.strip() for word in words if word.strip()))
    if len(cleaned) > MAX_KEYWORDS or any(len(word) > MAX_KEYWORD_CHARACTERS for word in cleaned):
        raise InvalidRequest(
            f"at most {MAX_KEYWORDS} keywords of {MAX_KEYWORD_CHARACTERS} characters", param="keywords"
        )
    return cleaned


def _refuse(form: FormData) -> None:
    for name in REFUSED:
        if form.get(name) not in (None, "", "false", "False", "auto"):
            raise InvalidRequest(f"{name} is not supported yet", param=name)


def _wants_words(form: FormData, response_format: str) -> bool:
    given = [str(v) for name in ("timestamp_granularities[]", "timestamp_granularities") for v in form.getlist(name)]
    if not given:
        return False
    if response_format != "verbose_json":
        raise InvalidRequest(
            "timestamp_granularities needs response_format verbose_json", param="timestamp_granularities"
        )
    if bad := set(given) - {"word", "segment"}:
        raise InvalidRequest(f"{sorted(bad)[0]!r} is neither word nor segment", param="timestamp_granularities")
    return "word" in given


def _pinned(request: Request, model: str) -> BackendName | None:
    names: dict[str, BackendName | None] = {**MODELS, **request.app.state.model_ids}
    if model not in names:
        raise ModelNotFound(f"there is no model {model!r}; there are: {', '.join(names)}", param="model")
    return names[model]


async def _unless_gone(
    request: Request, service: TranscriptionService, path: Any, wish: Wish, options: Options
) -> Outcome:
    """The outcome; a client that leaves cancels the work, the engine's part of it too."""
    working = asyncio.ensure_future(service.transcribe(path, wish, options))
    leaving = asyncio.create_task(_disconnected(request), name="disconnect")
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


class ClientGone(Exception):
    """Nobody is left to answer."""


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _headers(outcome: Outcome, ignored: list[str]) -> dict[str, str]:
    headers = {
        "X-Duet-Route": outcome.route.backend,
        "X-Duet-Route-Reason": outcome.route.reason,
        "X-Duet-Audio-Seconds": f"{outcome.transcript.duration:.2f}",
    }
    if outcome.route.degraded:
        headers["X-Duet-Degraded"] = "true"
    if ignored:
        headers["X-Duet-Ignored"] = ", ".join(name for name in ignored if name.isascii() and name.isprintable())[:1000]
    return headers


def _log_fields(outcome: Outcome) -> dict[str, object]:
    return {
        "route": outcome.route.backend,
        "reason": outcome.route.reason,
        "degraded": outcome.route.degraded,
        "audio_seconds": round(outcome.transcript.duration, 2),
    }


def _rendered(outcome: Outcome, response_format: ResponseFormat, *, words: bool, headers: dict[str, str]) -> Response:
    transcript = outcome.transcript
    match response_format:
        case "text":
            return PlainTextResponse(transcript.text + "\n", headers=headers)
        case "srt":
            return PlainTextResponse(
                formats.to_srt(transcript.segments), headers=headers, media_type="application/x-subrip"
            )
        case "vtt":
            return PlainTextResponse(formats.to_vtt(transcript.segments), headers=headers, media_type="text/vtt")
        case "verbose_json":
            return JSONResponse(formats.to_verbose_json(transcript, words=words), headers=headers)
        case "json":
            usage = {"type": "duration", "seconds": round(transcript.duration)}
            return JSONResponse({"text": transcript.text, "usage": usage}, headers=headers)
