"""Server-sent events, and what a client's leaving means. Plain ASGI: an event costs one `send`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from duet.errors import DuetError
from duet.http.disconnect import disconnected, stopped
from duet.http.errors import envelope

DONE = b"data: [DONE]\n\n"
FAREWELL_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 2.0
"""After so long without a frame a comment is sent: programs between us and the client close connections that say nothing."""


class EventStream(Response):
    """Sends frames as they come, and between them comments: `waiting` says what for. When the client leaves, the iterator is
    closed at once, even between two frames."""

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        *,
        waiting: Callable[[], str],
        close: Callable[[], Awaitable[None]],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`close` is called at the end, whatever it is, even if no frame was ever asked for."""
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._frames, self._waiting, self._close = frames, waiting, close
        self._sent_at = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks: list[asyncio.Task[None]] = []
        ended: set[asyncio.Task[None]] = set()
        stopping = False
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for work in (self._send(send), disconnected(receive), self._keep_alive(send)):
                tasks.append(asyncio.create_task(work, name="event-stream"))
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            # Nobody but the stopping server cancels a request: this is its end, and the client shall know.
            stopping = True
        finally:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                await self._frames.aclose()
                await self._close()
        for task in ended:
            task.result()
        if stopping:
            with contextlib.suppress(TimeoutError):  # a client that does not read holds nobody up
                async with asyncio.timeout(FAREWELL_SECONDS):
                    await send(_body(error_frame(stopped()), more=False))
        elif tasks[0] in ended:
            await send(_body(b"", more=False))

    async def _send(self, send: Send) -> None:
        async for frame in self._frames:
            await send(_body(frame))
            self._sent_at = time.monotonic()

    async def _keep_alive(self, send: Send) -> None:
        while True:
            left = self._sent_at + KEEP_ALIVE_SECONDS - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)
                continue
            await send(_body(comment(self._waiting() or "waiting")))
            self._sent_at = time.monotonic()


def _body(frame: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": frame, "more_body": more}


def error_frame(error: DuetError) -> bytes:
    """An error after the stream has begun."""
    return b"data: " + envelope(error) + b"\n\n"


def comment(text: str) -> bytes:
    """A keep-alive that clients skip."""
    return f": {text}\n\n".encode()
