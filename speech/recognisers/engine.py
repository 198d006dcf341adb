"""Any speech model behind `POST /v1/audio/transcriptions`, over HTTP.

Long audio is split at pauses, and the pieces are sent side by side so that they batch there.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import Any

from httpx import Response

from duet.client import Client, Refused, Unreachable
from duet.errors import InvalidRequest, Unavailable, first_error
from duet.wire import Segment, Transcript
from speech import vad
from speech.languages import heard
from speech.recognisers.port import Abilities, Options, Pcm
from speech.recognisers.stitching import stitched
from speech.splitter import SAMPLE_RATE, Span, split
from speech.wav import as_wav

logger = logging.getLogger(__name__)

PIECE_SECONDS = 28.0
PIECES_AT_ONCE = 4
HEALTH_SECONDS = 5.0
"""How long an answer about the model's state is taken to hold."""
ASK_SECONDS = 2.0
"""The limit for that answer: a recording waits for it."""


ENGINE = "the engine"
QWEN3_ASR = Abilities(
    languages=None, honours=frozenset({"keywords", "language", "prompt", "temperature"}), remote=ENGINE
)


class EngineRecogniser:
    """`model` is what the service is asked for: an id, an alias or the role `asr`."""

    unready = f"{ENGINE} has no speech model ready"

    def __init__(self, name: str, abilities: Abilities, client: Client, model: str) -> None:
        self.name, self.abilities = name, abilities
        self._client, self._model = client, model
        self._state = "unknown"
        self._checked_at = float("-inf")

    @property
    def state(self) -> str:
        """What was last known: the engine's own word (loaded, unloaded, absent, failed), missing, unreachable or unknown."""
        return self._state

    async def ready(self) -> bool:
        """Whether the engine has the model on its machine. A model that must be downloaded first is not ready."""
        if time.monotonic() - self._checked_at > HEALTH_SECONDS:
            self._state = await self._ask()
            self._checked_at = time.monotonic()
        return self._state not in ("unreachable", "missing", "absent", "failed")

    async def _ask(self) -> str:
        try:
            answer = await self._client.request("GET", f"/v1/models/{self._model}", timeout=ASK_SECONDS)
            model = answer.json()
        except Unreachable as error:
            logger.debug("%s", error)
            return "unreachable"
        except (Refused, ValueError):  # no such model there, or something else listens there
            return "missing"
        # Another OpenAI-compatible engine reports no state: it has the model, which is all we ask.
        ours = model.get("duet") if isinstance(model, dict) else None
        return str(ours.get("state", "unloaded")) if isinstance(ours, dict) else "unloaded"

    async def transcribe(self, pcm: Pcm, options: Options) -> Transcript:
        spans = await asyncio.to_thread(_pieces, pcm)
        limit = asyncio.Semaphore(PIECES_AT_ONCE)

        async def one(span: Span) -> list[Segment]:
            async with limit:
                return await self._piece(pcm, span, options)

        try:
            async with asyncio.TaskGroup() as group:  # a failed piece cancels the others: never half a transcript
                tasks = [group.create_task(one(span)) for span in spans]
        except BaseExceptionGroup as failures:
            self._checked_at = float("-inf")  # what was known of the engine may have changed
            raise first_error(failures) from failures
        return stitched((segment for task in tasks for segment in task.result()), len(pcm) / SAMPLE_RATE)

    async def _piece(self, pcm: Pcm, span: Span, options: Options) -> list[Segment]:
        """Segments of one piece, at their times in the whole."""
        clip = pcm[int(span.start * SAMPLE_RATE) : int(span.end * SAMPLE_RATE)]
        try:
            answer = await transcription(self._client, self._model, clip, options)
        except Unreachable as error:
            raise Unavailable(f"{ENGINE} failed: {error.cause}") from error
        except Refused as error:
            if error.answered in (400, 413, 422):
                raise InvalidRequest(error.message, param=error.param) from error
            raise Unavailable(f"{ENGINE} failed: {error.message}") from error
        try:
            return _parsed(answer.json(), span)
        except (ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"{ENGINE}'s answer is no transcription") from error

    async def close(self) -> None:
        await self._client.close()


async def transcription(client: Client, model: str, clip: Pcm, options: Options) -> Response:
    """The service's answer for one clip, in OpenAI's verbose_json. Raises `Unreachable` or `Refused`."""
    fields: dict[str, str | list[str]] = {
        "model": model,
        "response_format": "verbose_json",
        "temperature": str(options.temperature),
    }
    if options.language:
        fields["language"] = options.language
    if options.prompt:
        fields["prompt"] = options.prompt
    if options.keywords:
        fields["keywords[]"] = list(options.keywords)
    files = {"file": ("clip.wav", as_wav(clip), "audio/wav")}
    return await client.request("POST", "/v1/audio/transcriptions", data=fields, files=files)


def _parsed(answer: Any, span: Span) -> list[Segment]:
    """Segments with text, their times clamped to the piece, so that two pieces never overlap.

    Raises ValueError, KeyError or TypeError for an answer of another shape.
    """
    if not isinstance(answer, dict):
        raise TypeError("no object")
    segments = []
    language = heard(answer.get("language"))
    for item in answer.get("segments") or ():
        start = min(max(span.start + _seconds(item["start"]), span.start), span.end)
        end = min(max(span.start + _seconds(item["end"]), start), span.end)
        if text := _text(item["text"]):
            said = heard(item.get("language")) or language
            segments.append(Segment(start, end, text, language=said, low_confidence=item.get("low_confidence")))
    if not segments and (text := _text(answer["text"])):  # an engine without segments: the piece is one
        segments.append(Segment(span.start, span.end, text, language=language))
    return segments


def _seconds(said: Any) -> float:
    seconds = float(said)
    if not math.isfinite(seconds):
        raise ValueError("a time that is no number")
    return seconds


def _text(said: Any) -> str:
    return str(said).encode("utf-8", "replace").decode().strip()  # half a surrogate pair cannot be sent on


def _pieces(pcm: Pcm) -> list[Span]:
    return split(pcm, vad.detect(pcm), max_seconds=PIECE_SECONDS)
