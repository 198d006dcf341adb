"""Qwen3-ASR on the engine, over HTTP: long audio split at pauses, pieces sent side by side so that they batch there."""

from __future__ import annotations

import asyncio
import io
import logging
import time
import wave

import httpx
import numpy as np

from asr_router.backends.port import Options, Samples
from asr_router.backends.sensevoice import spoken_language
from duet.errors import DuetError, InvalidRequest, Unavailable
from duet.wire import Segment, Transcript
from speech import vad
from speech.splitter import SAMPLE_RATE, Span, split
from speech.text import join

logger = logging.getLogger(__name__)

PIECE_SECONDS = 28.0
PIECES_AT_ONCE = 4
HEALTH_SECONDS = 5.0
"""How long an answer of the engine about its models is believed."""


class Qwen3AsrBackend:
    """`model` is what the engine is asked for: an id, an alias or the role `asr`."""

    def __init__(self, client: httpx.AsyncClient, model: str) -> None:
        self._client, self._model = client, model
        self._state = "unknown"
        self._checked_at = float("-inf")

    @property
    def state(self) -> str:
        """What the engine last said: loaded, unloaded, absent, missing, unreachable."""
        return self._state

    async def ready(self) -> bool:
        """Whether the engine has the model on this machine. A model that would first be downloaded is not ready."""
        if time.monotonic() - self._checked_at > HEALTH_SECONDS:
            self._state = await self._ask()
            self._checked_at = time.monotonic()
        return self._state not in ("unreachable", "missing", "absent", "failed")

    async def _ask(self) -> str:
        try:
            answer = await self._client.get(f"/v1/models/{self._model}", timeout=2.0)
        except httpx.HTTPError as error:
            logger.debug("the engine is out of reach: %r", error)
            return "unreachable"
        if answer.status_code != 200:
            return "missing"
        return str(answer.json().get("duet", {}).get("state", "unloaded"))

    async def transcribe(self, samples: Samples, options: Options) -> Transcript:
        spans = await asyncio.to_thread(_pieces, samples)
        limit = asyncio.Semaphore(PIECES_AT_ONCE)

        async def one(span: Span) -> list[Segment]:
            async with limit:
                clip = samples[int(span.start * SAMPLE_RATE) : int(span.end * SAMPLE_RATE)]
                return await self._piece(clip, span, options)

        async with asyncio.TaskGroup() as group:  # one failed piece cancels the others: never half a transcript
            tasks = [group.create_task(one(span)) for span in spans]
        segments = tuple(segment for task in tasks for segment in task.result())
        duration = len(samples) / SAMPLE_RATE
        return Transcript(join(s.text for s in segments), duration, spoken_language(segments), segments)

    async def _piece(self, clip: Samples, span: Span, options: Options) -> list[Segment]:
        fields = {
            "model": self._model,
            "response_format": "verbose_json",
            "temperature": str(options.temperature),
            **({"language": options.language} if options.language else {}),
            **({"prompt": options.prompt} if options.prompt else {}),
        }
        data: dict[str, str | list[str]] = {**fields, "keywords[]": list(options.keywords)}
        try:
            answer = await self._client.post(
                "/v1/audio/transcriptions", data=data, files={"file": ("piece.wav", _wav(clip), "audio/wav")}
            )
        except httpx.HTTPError as error:
            raise Unavailable(f"the engine failed: {type(error).__name__}") from error
        if answer.status_code != 200:
            raise _error(answer)
        return [
            Segment(
                start=span.start + item["start"],
                end=min(span.end, span.start + item["end"]),
                text=item["text"],
                language=item.get("language"),
                low_confidence=item.get("low_confidence"),
            )
            for item in answer.json().get("segments", [])
        ]

    async def close(self) -> None:
        await self._client.aclose()


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended a task group: the others were cancelled because of it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _error(answer: httpx.Response) -> DuetError:
    try:
        said = answer.json()["error"]
        message, param = str(said["message"]), said.get("param")
    except (ValueError, KeyError, TypeError):
        message, param = f"status {answer.status_code}", None
    if answer.status_code in (400, 413, 422):
        return InvalidRequest(message, param=param)
    return Unavailable(f"the engine failed: {message}")


def _pieces(samples: Samples) -> list[Span]:
    return split(samples, vad.detect(samples), max_seconds=PIECE_SECONDS)


def _wav(clip: Samples) -> bytes:
    """16-bit PCM: half the bytes of float, and inaudibly less."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(np.clip(clip, -1.0, 1.0) * 32767.0).astype("<i2").tobytes())
    return buffer.getvalue()
