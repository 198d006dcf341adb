"""One transcription from spooled file to transcript: decode, route, recognise, fall back in the open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from asr_router.backends.port import Options, Recogniser, Samples
from asr_router.backends.qwen3_asr import first_error
from asr_router.routing import BackendName, Clip, Health, Route, Wish, choose
from duet.errors import Busy, DuetError, InvalidRequest, Unavailable, WorkerLost
from duet.wire import Transcript
from speech.decode import decode
from speech.sensevoice import LANGUAGES
from speech.splitter import SAMPLE_RATE

logger = logging.getLogger(__name__)

AT_ONCE, WAITING = 4, 64
RETRY_AFTER_SECONDS = 5
NO_MODEL = (
    "no speech recogniser is installed: start with `duet up --embedded` to try the embedded one, or put SenseVoice's "
    "model.int8.onnx and tokens.txt into $DUET_HOME/models/sensevoice (or set router.sensevoice_dir)"
)


@dataclass(frozen=True)
class Outcome:
    """`route` is the one that gave the transcript."""

    transcript: Transcript
    route: Route


class TranscriptionService:
    """Owns the two recognisers and how many requests run at once."""

    def __init__(self, backends: dict[BackendName, Recogniser], *, max_audio_seconds: float) -> None:
        self._backends, self._max_audio_seconds = backends, max_audio_seconds
        self._running = asyncio.Semaphore(AT_ONCE)
        self._under_way = 0

    async def health(self) -> Health:
        return Health(await self._backends["sensevoice"].ready(), await self._backends["qwen3_asr"].ready())

    async def transcribe(self, path: Path, wish: Wish, options: Options) -> Outcome:
        """Raises `InvalidAudio`, `Busy`, `Unavailable`."""
        async with self._place():
            samples = await asyncio.to_thread(decode, path, max_seconds=self._max_audio_seconds)
            health = await self.health()
            route = choose(Clip(len(samples) / SAMPLE_RATE), wish, health)
            if route is None:
                raise Unavailable(NO_MODEL, retry_after_seconds=60)
            outcome = await self._run(samples, route, options, health)
            return await self._rerouted(samples, wish, options, health, outcome)

    async def close(self) -> None:
        await asyncio.gather(*(backend.close() for backend in self._backends.values()))

    async def _run(self, samples: Samples, route: Route, options: Options, health: Health) -> Outcome:
        """By the route, or by SenseVoice for the whole clip when the engine fails on the way."""
        try:
            return Outcome(await self._recognise(route.backend, samples, options), route)
        except InvalidRequest:
            raise
        except DuetError as error:
            if route.backend == "qwen3_asr" and health.sensevoice:
                logger.warning("fell back to sensevoice: %s", error, extra={"action": "route_fallback"})
                fallback = Route("sensevoice", f"{route.reason}, but the engine failed", degraded=True)
                return Outcome(await self._recognise("sensevoice", samples, options), fallback)
            raise

    async def _rerouted(
        self, samples: Samples, wish: Wish, options: Options, health: Health, outcome: Outcome
    ) -> Outcome:
        """A short clip whose language was not given, and turns out to be none of SenseVoice's, goes to the engine."""
        language = outcome.transcript.language
        chosen_by_us = wish.model is None and wish.quality == "auto" and wish.language is None
        if outcome.route.backend != "sensevoice" or not chosen_by_us or language is None or language in LANGUAGES:
            return outcome
        if not health.qwen3_asr:
            reason = (
                f"{outcome.route.reason}; the language looks like {language}, but the engine has no speech model ready"
            )
            return Outcome(outcome.transcript, replace(outcome.route, reason=reason, degraded=True))
        return await self._run(samples, Route("qwen3_asr", f"language {language} was heard"), options, health)

    async def _recognise(self, backend: BackendName, samples: Samples, options: Options) -> Transcript:
        try:
            return await self._backends[backend].transcribe(samples, options)
        except BaseExceptionGroup as group:
            raise first_error(group) from group
        except WorkerLost:
            # A recogniser that died on this clip gets one more try: it may have been killed from outside.
            return await self._backends[backend].transcribe(samples, options)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        if self._under_way >= AT_ONCE + WAITING:
            raise Busy(f"{self._under_way} transcriptions are under way", retry_after_seconds=RETRY_AFTER_SECONDS)
        self._under_way += 1
        try:
            async with self._running:
                yield
        finally:
            self._under_way -= 1
