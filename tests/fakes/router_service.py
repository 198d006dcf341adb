"""The router as it is, on a free port of this process, with the embedded recogniser and an engine of the test's choice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import models
from asr_router.app import create_app, recognisers
from asr_router.transcribing import Transcriber
from duet.settings import RouterSettings, Settings
from speech.decoding.trusted import samples as decode
from speech.recognisers.port import Recogniser
from speech.recognisers.sensevoice import SenseVoiceRecogniser
from tests import sounds
from tests.fakes.engine_http import served

KEY = "test-key"
NOWHERE = "http://127.0.0.1:9"
"""The discard port: nobody listens there."""
DEMO = models.CARDS / "demo"
PATH = "/v1/audio/transcriptions"


@dataclass(frozen=True)
class RouterService:
    url: str
    home: Path
    client: httpx.AsyncClient
    transcriber: Transcriber

    async def send(self, data: bytes, *, name: str = "audio", **fields: Any) -> httpx.Response:
        """POST a file; a field ending in an underscore is written with brackets (`keywords_` is `keywords[]`)."""
        form = {key[:-1] + "[]" if key.endswith("_") else key: value for key, value in fields.items()}
        return await self.client.post(PATH, files={"file": (name, data)}, data=form)

    @property
    def recogniser_pid(self) -> int | None:
        return self._sensevoice.model.pid

    @property
    def recogniser_waited_for(self) -> bool:
        """Whether SenseVoice's process has a request that it has not answered."""
        connection = self._sensevoice.model._service._connection
        return connection is not None and bool(connection.waiting)

    @property
    def _sensevoice(self) -> SenseVoiceRecogniser:
        recogniser = self.transcriber.recognisers["sensevoice"]
        assert isinstance(recogniser, SenseVoiceRecogniser)
        return recogniser

    def spooled(self) -> list[Path]:
        return list((self.home / "tmp" / "router").iterdir())


@asynccontextmanager
async def router_service(
    home: Path, engine_url: str = NOWHERE, *, embedded: bool = True, more: Sequence[Recogniser] = (), **router: Any
) -> AsyncIterator[RouterService]:
    """`more` recognisers follow the two of the house."""
    settings = Settings(home=home, embedded=embedded, router=RouterSettings(engine_url=engine_url, **router))
    found = [*recognisers(settings, key=KEY), *more]
    transcriber = Transcriber(found, max_audio_seconds=settings.router.max_audio_seconds)
    async with served(create_app(settings, transcriber, key=KEY), lifespan="on") as url:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
            yield RouterService(url, home, client, transcriber)


def clip(language: str = "en") -> bytes:
    return (DEMO / f"clip_{language}.flac").read_bytes()


def long_clip(seconds: float) -> bytes:
    """Speech again and again with pauses, as WAV."""
    import numpy as np

    speech = decode(DEMO / "clip_en.flac", max_seconds=60)
    block = np.concatenate([speech, np.zeros(16_000, np.float32)])
    count = int(seconds * 16_000)
    return sounds.wav(sounds.pcm(np.tile(block, count // len(block) + 1)[:count]))
