"""One transcription from spooled file to transcript: decode, route, recognise, fall back in the open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from asr_router.routing import SHORT_CLIP, Candidate, Clip, Route, Wish, choose
from duet.errors import Busy, DuetError, InvalidRequest, Unavailable, WorkerLost
from duet.wire import Transcript
from speech.decoding.child.messages import Channels
from speech.decoding.decoder import Decoder
from speech.decoding.pcm import open_pcm
from speech.level import NO_SPEECH, audible
from speech.recognisers.port import Abilities, Field, Options, Pcm, Recogniser
from speech.recognisers.stitching import merged
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
    """`route` is the one that gave the transcript, or all that did; `abilities` are those of its recogniser. `truncated`,
    `warnings`: what the caller must know of the audio."""

    transcript: Transcript
    route: Route
    abilities: Abilities
    truncated: bool = False
    warnings: tuple[str, ...] = ()


def of_channels(outcomes: Sequence[Outcome]) -> Outcome:
    """One outcome of all channels. A field has an effect if every channel's recogniser honours it."""
    routes = [outcome.route for outcome in outcomes]
    route = Route(
        ", ".join(dict.fromkeys(route.recogniser for route in routes)),
        "; ".join(dict.fromkeys(route.reason for route in routes)),
        degraded=any(route.degraded for route in routes),
    )
    honours = frozenset[Field].intersection(*(outcome.abilities.honours for outcome in outcomes))
    warnings = (f"channel {i}: {said}" for i, outcome in enumerate(outcomes, 1) for said in outcome.warnings)
    transcript = merged([outcome.transcript for outcome in outcomes])
    return Outcome(transcript, route, replace(outcomes[0].abilities, honours=honours), warnings=tuple(warnings))


class Transcriber:
    """Owns the recognisers and how many requests run at once."""

    def __init__(self, recognisers: Sequence[Recogniser], *, max_audio_seconds: float) -> None:
        """`recognisers` in order of preference: from the fastest to the most accurate."""
        self.recognisers: Mapping[str, Recogniser] = {recogniser.name: recogniser for recogniser in recognisers}
        self.decoder = Decoder(max_seconds=max_audio_seconds)
        self._running = asyncio.Semaphore(AT_ONCE)
        self._under_way = 0

    async def health(self) -> dict[str, bool]:
        """Which recognisers can be used now, by name."""
        return {name: await recogniser.ready() for name, recogniser in self.recognisers.items()}

    async def transcribe(
        self, path: Path, wish: Wish, options: Options, *, strict: bool = False, channels: Channels = "mix"
    ) -> Outcome:
        """Leaves the decoded audio beside `path`, whose folder is the caller's to remove. `strict` refuses a truncated file.
        `channels`: "each" recognises every channel for itself.

        Raises `InvalidAudio`, `Busy`, `Unavailable`, `DiskFull`.
        """
        async with self._place():
            target = path.with_name("decoded.pcm")
            decoded = await self.decoder.decode(path, target, strict=strict, channels=channels)
            outcomes = [await self._heard(open_pcm(file), wish, options) for file in decoded.files]
            outcome = outcomes[0] if channels == "mix" else of_channels(outcomes)
            warnings = (*decoded.warnings, *outcome.warnings)
            return replace(outcome, truncated=decoded.truncated is not None, warnings=warnings)

    async def close(self) -> None:
        await asyncio.gather(self.decoder.close(), *(recogniser.close() for recogniser in self.recognisers.values()))

    async def _heard(self, pcm: Pcm, wish: Wish, options: Options) -> Outcome:
        route = await self._route(Clip(len(pcm) / SAMPLE_RATE), wish)
        outcome = await self._rerouted(pcm, wish, options, await self._run(pcm, route, options))
        if not outcome.transcript.text and await asyncio.to_thread(audible, pcm):
            return replace(outcome, warnings=(NO_SPEECH,))
        return outcome

    async def _route(self, clip: Clip, wish: Wish) -> Route:
        """A remote recogniser is taken to be ready and asked only when the route leads to it: a short clip never waits for
        its answer."""
        known = {name: await r.ready() for name, r in self.recognisers.items() if r.abilities.remote is None}
        while True:
            candidates = [
                Candidate(name, r.abilities, known.get(name, True), r.unready) for name, r in self.recognisers.items()
            ]
            route = choose(clip, wish, candidates) if candidates else None
            if route is None:
                raise Unavailable(NO_MODEL, retry_after_seconds=60)
            if route.recogniser in known:
                return route
            known[route.recogniser] = await self.recognisers[route.recogniser].ready()

    async def _run(self, pcm: Pcm, route: Route, options: Options) -> Outcome:
        """By the route, or by a recogniser of ours for the whole clip when a remote one fails on the way."""
        try:
            return await self._recognise(route, pcm, options)
        except InvalidRequest:
            raise
        except DuetError as error:
            remote = self.recognisers[route.recogniser].abilities.remote
            local = None if remote is None else await self._first_local()
            if local is None:
                raise
            logger.warning("fell back to %s: %s", local.name, error, extra={"action": "route_fallback"})
            fallback = Route(local.name, f"{route.reason}, but {remote} failed", degraded=True)
            return await self._recognise(fallback, pcm, options)

    async def _first_local(self) -> Recogniser | None:
        for recogniser in self.recognisers.values():
            if recogniser.abilities.remote is None and await recogniser.ready():
                return recogniser
        return None

    async def _rerouted(self, pcm: Pcm, wish: Wish, options: Options, outcome: Outcome) -> Outcome:
        """A clip whose language was not given and that turns out to be in none of its recogniser's languages goes to one
        that has it."""
        route, language = outcome.route, outcome.transcript.language
        if route.reason != SHORT_CLIP or wish.language is not None or language is None:
            return outcome
        if outcome.abilities.hears(language):
            return outcome
        able = [recogniser for recogniser in self.recognisers.values() if recogniser.abilities.hears(language)]
        for recogniser in able:
            if await recogniser.ready():
                return await self._run(pcm, Route(recogniser.name, f"language {language} was heard"), options)
        if not able:
            return outcome
        reason = f"{route.reason} that sounds like {language}, but {able[0].unready}"
        return Outcome(outcome.transcript, Route(route.recogniser, reason, degraded=True), outcome.abilities)

    async def _recognise(self, route: Route, pcm: Pcm, options: Options) -> Outcome:
        recogniser = self.recognisers[route.recogniser]
        try:
            transcript = await recogniser.transcribe(pcm, options)
        except WorkerLost:
            # A recogniser that died on this clip gets one more try: it may have been killed from outside.
            transcript = await recogniser.transcribe(pcm, options)
        return Outcome(transcript, route, recogniser.abilities)

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
