"""One transcription from spooled file to transcript: decode, route, recognise, fall back in the open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from asr_router.backends.port import Options, Pcm, Recogniser
from asr_router.routing import SHORT_CLIP, BackendName, Clip, Health, Route, Wish, choose
from duet.errors import Busy, DuetError, InvalidRequest, Unavailable, WorkerLost
from duet.wire import Transcript
from speech.decode import decode_to_pcm, open_pcm
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
        """Leaves the decoded audio beside `path`, whose folder is the caller's to remove.

        Raises `InvalidAudio`, `Busy`, `Unavailable`.
        """
        async with self._place():
            pcm_path = path.with_name("decoded.pcm")
            try:
                await asyncio.to_thread(decode_to_pcm, path, pcm_path, max_seconds=self._max_audio_seconds)
            except OSError as error:
                raise Unavailable(f"the decoded audio cannot be kept on disk: {error.strerror}") from error
            pcm = open_pcm(pcm_path)
            route = await self._route(Clip(len(pcm) / SAMPLE_RATE), wish)
            outcome = await self._run(pcm, route, options)
            return await self._rerouted(pcm, wish, options, outcome)

    async def close(self) -> None:
        await asyncio.gather(*(backend.close() for backend in self._backends.values()))

    async def _route(self, clip: Clip, wish: Wish) -> Route:
        """Asks the engine only where the route would lead there: a short clip never waits for it."""
        sensevoice = await self._backends["sensevoice"].ready()
        route = choose(clip, wish, Health(sensevoice, qwen3_asr=True))
        if route is None or route.backend == "qwen3_asr":
            route = choose(clip, wish, Health(sensevoice, await self._backends["qwen3_asr"].ready()))
        if route is None:
            raise Unavailable(NO_MODEL, retry_after_seconds=60)
        return route

    async def _run(self, pcm: Pcm, route: Route, options: Options) -> Outcome:
        """By the route, or by SenseVoice for the whole clip when the engine fails on the way."""
        try:
            return Outcome(await self._recognise(route.backend, pcm, options), route)
        except InvalidRequest:
            raise
        except DuetError as error:
            if route.backend == "qwen3_asr" and await self._backends["sensevoice"].ready():
                logger.warning("fell back to sensevoice: %s", error, extra={"action": "route_fallback"})
                fallback = Route("sensevoice", f"{route.reason}, but the engine failed", degraded=True)
                return Outcome(await self._recognise("sensevoice", pcm, options), fallback)
            raise

    async def _rerouted(self, pcm: Pcm, wish: Wish, options: Options, outcome: Outcome) -> Outcome:
        """A clip whose language was not given, and turns out to be none of SenseVoice's, goes to the engine."""
        language = outcome.transcript.language
        if outcome.route != SHORT_CLIP or wish.language is not None or language is None or language in LANGUAGES:
            return outcome
        if not await self._backends["qwen3_asr"].ready():
            reason = f"{outcome.route.reason} that sounds like {language}, but the engine has no speech model ready"
            return replace(outcome, route=replace(outcome.route, reason=reason, degraded=True))
        return await self._run(pcm, Route("qwen3_asr", f"language {language} was heard"), options)

    async def _recognise(self, backend: BackendName, pcm: Pcm, options: Options) -> Transcript:
        try:
            return await self._backends[backend].transcribe(pcm, options)
        except WorkerLost:
            # A recogniser that died on this clip gets one more try: it may have been killed from outside.
            return await self._backends[backend].transcribe(pcm, options)

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
