"""The router's HTTP application: its routes, its edge, its recognisers, and when they start and end."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from asr_router.routes import meetings, models, transcriptions
from asr_router.transcribing import Transcriber
from duet.client import Client
from duet.http.docs import install_docs
from duet.http.edge import install_edge
from duet.http.spool import Spool
from duet.settings import Settings
from pipelines.jobs.client import MeetingClient
from speech.recognisers.engine import QWEN3_ASR, EngineRecogniser
from speech.recognisers.port import Recogniser
from speech.recognisers.sensevoice import EMBEDDED_ID, SenseVoiceRecogniser, find_sensevoice

logger = logging.getLogger(__name__)


def create_app(settings: Settings, transcriber: Transcriber, *, key: str) -> FastAPI:
    spool = Spool(settings.home / "tmp" / "router", max_bytes=settings.router.max_upload_bytes)
    client = MeetingClient(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        spool.open()
        opening = asyncio.create_task(_open_meetings(app, client), name="open-meetings")
        yield
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await client.close()
        await transcriber.close()

    app = FastAPI(
        title="Duet ASR router",
        version=importlib.metadata.version("mlx-duet"),
        description="Short clips to SenseVoice, long ones to Qwen3-ASR on the engine, and durable meetings.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.transcriber, app.state.spool, app.state.meetings = transcriber, spool, None
    embedded = settings.embedded and settings.router.sensevoice_dir is None
    app.state.demonstrations = {EMBEDDED_ID: SenseVoiceRecogniser.name} if embedded else {}
    install_edge(
        app,
        key=key,
        allowed_hosts=settings.allowed_hosts,
        allowed_origins=settings.allowed_origins,
        # The multipart envelope and its fields come on top of the file.
        max_body_bytes=settings.router.max_upload_bytes + (1 << 20),
    )
    install_docs(app)
    for module in (transcriptions, meetings, models):
        app.include_router(module.router)
    return app


def recognisers(settings: Settings, *, key: str) -> list[Recogniser]:
    """In order of preference: from the fastest to the most accurate."""
    engine = Client(settings.engine_url, key, timeout_seconds=settings.router.engine_timeout_seconds)
    return [
        SenseVoiceRecogniser(find_sensevoice(settings) or settings.home / "models" / "sensevoice"),
        EngineRecogniser("qwen3_asr", QWEN3_ASR, engine, settings.router.asr_model),
    ]


def create_transcriber(settings: Settings, *, key: str) -> Transcriber:
    return Transcriber(recognisers(settings, key=key), max_audio_seconds=settings.router.max_audio_seconds)


async def _open_meetings(app: FastAPI, client: MeetingClient) -> None:
    """Runs beside the first requests: a migration must not delay short clips."""
    try:
        await client.open()
    except Exception:
        logger.exception("the meetings' store cannot be opened", extra={"action": "meetings_failed"})
        return
    app.state.meetings = client
