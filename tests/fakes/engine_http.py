"""An engine that hears what a test tells it to, over real HTTP on a free port of this process."""

from __future__ import annotations

import asyncio
import io
import wave
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


@dataclass(frozen=True)
class Heard:
    """One piece as it arrived. `fields` are the form's values but the file."""

    seconds: float
    fields: dict[str, list[str]]
    authorization: str


@dataclass
class FakeEngine:
    """`state` None: it has no such model. `answers` are taken first, in order; then pieces are numbered: piece1, piece2 …

    Owned by the test; the server's handlers and the test run on one loop.
    """

    url: str = ""
    state: str | None = "loaded"
    answers: list[Response] = field(default_factory=list)
    hold: asyncio.Event | None = None
    """Pieces wait for it."""
    heard: list[Heard] = field(default_factory=list)
    asked_for_model: int = 0
    at_once: int = 0
    most_at_once: int = 0
    left_early: int = 0
    chats: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of chat requests as they came. They are answered like pieces, then by `reply`."""
    reply: Callable[[dict[str, Any]], str] = field(default=lambda body: "{}")

    async def model(self, _: Request) -> Response:
        self.asked_for_model += 1
        if self.state is None:
            return failure(404, "there is no model of that name")
        return JSONResponse({"id": "asr", "object": "model", "duet": {"state": self.state}})

    async def transcriptions(self, request: Request) -> Response:
        async with request.form() as form:
            piece = Heard(await _seconds(form), _fields(form), request.headers.get("authorization", ""))
        self.heard.append(piece)
        number = len(self.heard)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.hold is not None and await self._left_before(request, self.hold):
                self.left_early += 1
                return Response(status_code=499)
            await asyncio.sleep(0)
        finally:
            self.at_once -= 1
        if self.answers:
            return self.answers.pop(0)
        return transcription(f"piece{number}", piece.seconds)

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.chats.append(body)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.005)
        self.at_once -= 1
        return self.answers.pop(0) if self.answers else said(self.reply(body))

    async def _left_before(self, request: Request, event: asyncio.Event) -> bool:
        waiting = asyncio.create_task(event.wait())
        leaving = asyncio.create_task(_disconnect(request))
        done, pending = await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return leaving in done


def transcription(text: str, seconds: float, *, language: str = "en") -> Response:
    segment = {"id": 0, "start": 0.0, "end": seconds, "text": text, "language": language}
    return JSONResponse({"text": text, "language": language, "duration": seconds, "segments": [segment]})


def said(text: str) -> Response:
    return JSONResponse({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})


def failure(status: int, message: str, *, param: str | None = None) -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": "invalid_value"}
    return JSONResponse({"error": error}, status)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _seconds(form: FormData) -> float:
    upload: Any = form["file"]
    with wave.open(io.BytesIO(await upload.read())) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)
        return file.getnframes() / 16_000


def _fields(form: FormData) -> dict[str, list[str]]:
    return {name: [str(value) for value in form.getlist(name)] for name in form if name != "file"}


@asynccontextmanager
async def fake_engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    routes = [
        Route("/v1/models/{name:path}", engine.model),
        Route("/v1/audio/transcriptions", engine.transcriptions, methods=["POST"]),
        Route("/v1/chat/completions", engine.chat, methods=["POST"]),
    ]
    async with served(Starlette(routes=routes), lifespan="off") as url:
        engine.url = url
        yield engine


@asynccontextmanager
async def served(app: Any, *, lifespan: Any) -> AsyncIterator[str]:
    """`app` on a free port; yields its address."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_config=None, lifespan=lifespan, timeout_graceful_shutdown=1)
    )
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(30):
            while not server.started:
                await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
