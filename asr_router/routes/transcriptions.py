"""`POST /v1/audio/transcriptions` (https://platform.openai.com/docs/api-reference/audio/createTranscription)."""

from __future__ import annotations

import json
import logging
from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.datastructures import FormData

from asr_router.backends.port import Options
from asr_router.languages import LANGUAGES
from asr_router.routing import BackendName, Quality, Wish, unused
from asr_router.service import Outcome, TranscriptionService
from duet.errors import InvalidRequest, ModelNotFound
from duet.http.disconnect import unless_gone
from duet.wire import Transcript
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
    model: Annotated[str, Form(max_length=128)] = "auto",
    language: Annotated[str | None, Form(pattern=r"^([A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*)?$")] = None,
    prompt: Annotated[str | None, Form(max_length=MAX_PROMPT_CHARACTERS)] = None,
    response_format: Annotated[ResponseFormat, Form()] = "json",
    temperature: Annotated[float, Form(ge=0, le=1)] = 0.0,
    quality: Annotated[Quality, Form()] = "auto",
) -> Response:
    """The text of a recording (wav, mp3, m4a, flac, ogg, webm). Headers name the recogniser and why it was chosen."""
    form = await request.form()
    _refuse(form)
    granularities = _granularities(form, response_format)
    keywords = parse_keywords(_texts(form, "keywords[]", "keywords", "hotwords"))
    code = _language(language)
    wish = Wish(_pinned(request, model), code, quality, keywords=bool(keywords), prompt=bool(prompt))
    options = Options(code, prompt or None, keywords, temperature)
    service: TranscriptionService = request.app.state.transcriptions
    async with request.app.state.spool.take(file) as path:
        outcome = await unless_gone(request, service.transcribe(path, wish, options))
    unknown = [name for name in form if name not in KNOWN and name not in REFUSED]
    idle = unused(outcome.route.backend, options, words="word" in granularities, heard=outcome.transcript.language)
    headers = _headers(outcome, ignored=sorted({*unknown, *idle}))
    if outcome.route.backend in request.app.state.demonstrations:
        headers["X-Duet-Demonstration"] = "true"
    logger.info("transcribed", extra={"action": "transcribed", **_log_fields(outcome)})
    return _rendered(outcome.transcript, response_format, granularities, headers)


def parse_keywords(given: list[str]) -> tuple[str, ...]:
    """Repeated fields, one field with commas, or a JSON list. Raises `InvalidRequest` naming `keywords`."""
    words: list[str] = []
    for item in given:
        if item.lstrip().startswith("["):
            try:
                words += [str(word) for word in json.loads(item)]
            except (ValueError, RecursionError) as error:
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


def _texts(form: FormData, *names: str) -> list[str]:
    """All values of fields of these names. Raises `InvalidRequest` for an upload in their place."""
    found = []
    for name in names:
        for value in form.getlist(name):
            if not isinstance(value, str):
                raise InvalidRequest(f"{name} is text, not a file", param=name)
            found.append(value)
    return found


def _granularities(form: FormData, response_format: str) -> frozenset[str]:
    """Whether segments, words or both have times; segments if nothing is said, as OpenAI does."""
    given = frozenset(_texts(form, "timestamp_granularities[]", "timestamp_granularities"))
    if given and response_format != "verbose_json":
        raise InvalidRequest(
            "timestamp_granularities needs response_format verbose_json", param="timestamp_granularities"
        )
    if bad := given - {"word", "segment"}:
        raise InvalidRequest(f"{min(bad)[:32]!r} is neither word nor segment", param="timestamp_granularities")
    return given or frozenset({"segment"})


def _language(given: str | None) -> str | None:
    """The primary code of a language tag (zh of zh-CN). Raises `InvalidRequest` for what is no language."""
    code = (given or "").lower().partition("-")[0]
    if code and code not in LANGUAGES:
        raise InvalidRequest(f"language {code!r} is no ISO 639-1 code", param="language")
    return code or None


def _pinned(request: Request, model: str) -> BackendName | None:
    names: dict[str, BackendName | None] = {**MODELS, **request.app.state.model_ids}
    if model not in names:
        raise ModelNotFound(f"there is no model {model!r}; there are: {', '.join(names)}", param="model")
    return names[model]


def _headers(outcome: Outcome, *, ignored: list[str]) -> dict[str, str]:
    headers = {
        "X-Duet-Route": outcome.route.backend,
        "X-Duet-Route-Reason": outcome.route.reason,
        "X-Duet-Audio-Seconds": f"{outcome.transcript.duration:.2f}",
    }
    if outcome.route.degraded:
        headers["X-Duet-Degraded"] = "true"
    if ignored:
        shown = (name[:64] for name in ignored if name.isascii() and name.isprintable())
        headers["X-Duet-Ignored"] = ", ".join(shown)[:1000]
    return headers


def _log_fields(outcome: Outcome) -> dict[str, object]:
    return {
        "route": outcome.route.backend,
        "reason": outcome.route.reason,
        "degraded": outcome.route.degraded,
        "audio_seconds": round(outcome.transcript.duration, 2),
    }


def _rendered(
    transcript: Transcript, response_format: ResponseFormat, granularities: frozenset[str], headers: dict[str, str]
) -> Response:
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
            words, segments = "word" in granularities, "segment" in granularities
            shown = formats.to_verbose_json(transcript, words=words, segments=segments)
            return JSONResponse(shown, headers=headers)
        case "json":
            usage = {"type": "duration", "seconds": round(transcript.duration)}
            return JSONResponse({"text": transcript.text, "usage": usage}, headers=headers)
