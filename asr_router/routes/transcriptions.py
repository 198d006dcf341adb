"""`POST /v1/audio/transcriptions` (https://platform.openai.com/docs/api-reference/audio/createTranscription)."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, File, Form, Request, Response
from starlette.datastructures import FormData

from asr_router.routing import Quality, Wish, unused
from asr_router.transcribing import Outcome, Transcriber
from duet.errors import InvalidRequest, ModelNotFound
from duet.http.disconnect import unless_gone
from duet.http.forms import FormRoute
from duet.http.parts import Upload
from speech.decoding.child.messages import Channels
from speech.formats import MEDIA_TYPES, ResponseFormat, Shown, notice_headers, rendered
from speech.keywords import parse_keywords
from speech.languages import language_of
from speech.recognisers.port import Options
from speech.text import read

logger = logging.getLogger(__name__)
router = APIRouter(route_class=FormRoute)

CHOOSE_FOR_ME = ("auto", "whisper-1")
"""`whisper-1` is what stock clients send by default: taken as auto."""
KNOWN = frozenset(
    {"file", "model", "language", "prompt", "response_format", "temperature", "quality", "keywords", "keywords[]",
     "hotwords", "timestamp_granularities[]", "timestamp_granularities", "strict", "channels"}
)  # fmt: skip
REFUSED = (
    "stream", "include[]", "include", "chunking_strategy", "known_speaker_names[]", "known_speaker_references[]", "languages[]",
)  # fmt: skip
MAX_PROMPT_CHARACTERS = 8000


@router.post("/v1/audio/transcriptions")
async def transcriptions(
    request: Request,
    file: Annotated[Upload, File()],
    model: Annotated[str, Form(max_length=128)] = "auto",
    language: Annotated[str | None, Form()] = None,
    prompt: Annotated[str | None, Form(max_length=MAX_PROMPT_CHARACTERS)] = None,
    response_format: Annotated[ResponseFormat, Form()] = "json",
    temperature: Annotated[float, Form(ge=0, le=1)] = 0.0,
    quality: Annotated[Quality, Form()] = "auto",
    strict: Annotated[bool, Form()] = False,
    channels: Annotated[Channels, Form()] = "mix",
) -> Response:
    """The text of a recording (wav, mp3, m4a, mp4, flac, ogg, webm, mkv). Headers name the recogniser and why it was chosen,
    and what was left out of the audio. `strict` refuses a truncated file; `channels=each` recognises each channel for itself."""
    form = await request.form()
    _refuse(form)
    granularities = _granularities(form, response_format)
    keywords = parse_keywords(_texts(form, "keywords[]", "keywords", "hotwords"))
    prompt = read(prompt or "", name="prompt").strip()
    code = language_of(language)
    wish = Wish(_pinned(request, model), code, quality, keywords=bool(keywords), prompt=bool(prompt))
    options = Options(code, prompt or None, keywords, temperature)
    transcriber: Transcriber = request.app.state.transcriber
    outcome = await unless_gone(
        request, transcriber.transcribe(file.path, wish, options, strict=strict, channels=channels)
    )
    unknown = [name for name in form if name not in KNOWN and name not in REFUSED]
    idle = unused(outcome.abilities, options, words="word" in granularities, heard=outcome.transcript.language)
    headers = _headers(outcome, ignored=sorted({*unknown, *idle}))
    if not set(outcome.route.recogniser.split(", ")).isdisjoint(request.app.state.demonstrations.values()):
        headers["X-Duet-Demonstration"] = "true"
    logger.info("transcribed", extra={"action": "transcribed", **_log_fields(outcome)})
    shown = Shown("word" in granularities, "segment" in granularities, code, temperature, outcome.warnings)
    body = rendered(outcome.transcript, response_format, shown)
    return Response(body, headers=headers, media_type=MEDIA_TYPES[response_format])


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


def model_names(request: Request) -> dict[str, str | None]:
    """What `model` may be, and the recogniser that it pins; None lets us choose."""
    transcriber: Transcriber = request.app.state.transcriber
    pins = {name.replace("_", "-"): name for name in transcriber.recognisers}
    return {**dict.fromkeys(CHOOSE_FOR_ME), **pins, **request.app.state.demonstrations}


def _pinned(request: Request, model: str) -> str | None:
    names = model_names(request)
    if model not in names:
        raise ModelNotFound(f"there is no model {model!r}; there are: {', '.join(names)}", param="model")
    return names[model]


def _headers(outcome: Outcome, *, ignored: list[str]) -> dict[str, str]:
    headers = {
        "X-Duet-Route": outcome.route.recogniser,
        "X-Duet-Route-Reason": outcome.route.reason,
        "X-Duet-Audio-Seconds": f"{outcome.transcript.duration:.2f}",
    }
    headers |= notice_headers(truncated=outcome.truncated, warnings=outcome.warnings)
    if outcome.route.degraded:
        headers["X-Duet-Degraded"] = "true"
    if ignored:
        shown = (name[:64] for name in ignored if name.isascii() and name.isprintable())
        headers["X-Duet-Ignored"] = ", ".join(shown)[:1000]
    return headers


def _log_fields(outcome: Outcome) -> dict[str, object]:
    return {
        "route": outcome.route.recogniser,
        "reason": outcome.route.reason,
        "degraded": outcome.route.degraded,
        "audio_seconds": round(outcome.transcript.duration, 2),
    }
