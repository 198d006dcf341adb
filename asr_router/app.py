"""The router's HTTP application: its routes, its edge, its recognisers, and when they start and end."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI

from asr_router.routes import meetings, models, transcriptions
from asr_router.transcribing import Transcriber
from duet.client import Client
from duet.errors import DuetError, Unavailable
from duet.http.docs import install_docs
from duet.http.edge import install_edge
from duet.http.spool import Spool
from duet.settings import Settings
from duet.supervise.board import resting_programs
from pipelines.jobs.client import MeetingClient
from speech.recognisers.engine import QWEN3_ASR, EngineRecogniser
from speech.recognisers.port import Recogniser
from speech.recognisers.sensevoice import EMBEDDED_ID, SenseVoiceRecogniser, find_sensevoice

logger = logging.getLogger(__name__)

STORE_SECONDS = 3.0
"""How often it is seen whether the store of meetings can be used, or is still the one that was opened."""
OPENING = Unavailable("the meetings' store is being opened", retry_after_seconds=2)


def create_app(settings: Settings, transcriber: Transcriber, *, key: str) -> FastAPI:
    spool = Spool(settings.home / "tmp" / "router", max_bytes=settings.router.max_upload_bytes)
    client = MeetingClient(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        spool.open()
        opening = asyncio.create_task(_keep_meetings_open(app, client), name="meetings")
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
    app.state.transcriber, app.state.spool, app.state.meetings = transcriber, spool, OPENING
    app.state.resting = partial(resting_programs, settings.home)
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


async def _keep_meetings_open(app: FastAPI, client: MeetingClient) -> None:
    """Runs beside the requests: a migration must not delay short clips, and a store that cannot be used now is tried again.
    `app.state.meetings` is the client while the store is open, and else the error that requests get."""
    while True:
        try:
            await client.open()
        except DuetError as error:
            if str(error) != str(app.state.meetings):
                logger.error(  # noqa: TRY400 - the message is the whole cause
                    "no meetings: %s", error, extra={"action": "meetings_failed"}
                )
            app.state.meetings = error
        except Exception:
            logger.exception("the meetings' store cannot be opened", extra={"action": "meetings_failed"})
            app.state.meetings = Unavailable("the store of meetings cannot be opened; the log says why")
        else:
            app.state.meetings = client
            while not client.is_lost:
                await asyncio.sleep(STORE_SECONDS)
            app.state.meetings = OPENING
        await client.close()
        await asyncio.sleep(STORE_SECONDS)
