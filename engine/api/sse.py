"""Server-sent events, and what a client's leaving means. Plain ASGI: an event costs one `send`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from duet.edge import envelope
from duet.errors import DuetError, Unavailable

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
FAREWELL_SECONDS = 1.0


class ClientGone(Exception):
    """The client closed the connection: there is nobody to answer."""


class EventStream(Response):
    """Sends frames as they come. When the client leaves, the iterator is closed at once, even between two frames."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncIterator[bytes], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send), name="event-stream")
        leaving = asyncio.create_task(disconnected(receive), name="disconnect")
        stopping = False
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        except asyncio.CancelledError:
            # Nobody but the stopping server cancels a request: this is its end, and the client shall know.
            stopping = True
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self._frames.aclose()  # type: ignore[attr-defined]
        if stopping:
            with contextlib.suppress(TimeoutError):  # a client that does not read holds nobody up
                async with asyncio.timeout(FAREWELL_SECONDS):
                    await send({"type": "http.response.body", "body": error_frame(stopped()), "more_body": False})

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for frame in self._frames:
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def disconnected(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; cancels it and raises `ClientGone` when the client leaves first, `Unavailable` when the
    server stops."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(disconnected(request.receive), name="disconnect")
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    except asyncio.CancelledError as error:
        raise stopped() from error  # only the stopping server cancels a request
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def stopped() -> Unavailable:
    return Unavailable("the engine is stopping; send the request again when it is back", retry_after_seconds=5)


def error_frame(error: DuetError) -> bytes:
    """An error after the stream has begun."""
    return b"data: " + msgspec.json.encode(envelope(error)) + b"\n\n"


def comment(text: str) -> bytes:
    """A keep-alive that clients skip."""
    return f": {text}\n\n".encode()
