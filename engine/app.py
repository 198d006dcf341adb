"""The gateway's HTTP application: routes, edge, and the pool's life around them."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial

from fastapi import FastAPI

from duet.http.docs import install_docs
from duet.http.edge import install_edge
from duet.http.spool import Spool
from duet.settings import Settings
from duet.supervise.board import resting_programs
from engine.api import dialects, modalities, operators
from engine.api.metered import Metered
from engine.api.modalities.transcriptions import Uploads
from engine.api.shared.pictures import Pictures
from engine.types import Backend


def create_app(
    backend: Backend, settings: Settings, *, key: str, life: AbstractAsyncContextManager[object] | None = None
) -> FastAPI:
    """`life` is entered before the first request and left after the last: the life of the pool's workers."""

    spool = Spool(settings.home / "tmp" / "engine", max_bytes=settings.engine.max_body_bytes)
    uploads = Uploads(
        backend, max_requests=settings.engine.max_waiting_requests, max_seconds=settings.engine.max_audio_seconds
    )
    pictures = Pictures()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        spool.open()
        try:
            async with life or nullcontext():
                yield
        finally:
            await asyncio.gather(pictures.close(), uploads.close())

    app = FastAPI(
        title="Duet engine",
        version=importlib.metadata.version("mlx-duet"),
        description="OpenAI-compatible chat, completions, embeddings and transcription on MLX.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.resting = partial(resting_programs, settings.home)
    app.state.models = app.state.operators = backend
    app.state.pictures = pictures
    app.state.work = Metered(pictures.counting(backend), backend)
    app.state.spool = spool
    app.state.uploads = uploads
    install_edge(
        app,
        key=key,
        allowed_hosts=settings.allowed_hosts,
        allowed_origins=settings.allowed_origins,
        max_body_bytes=settings.engine.max_body_bytes,
    )
    install_docs(app)
    for router in (*dialects.ROUTERS, *modalities.ROUTERS, *operators.ROUTERS):
        app.include_router(router)
    return app
