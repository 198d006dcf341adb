"""A response of server-sent events. Plain ASGI: a frame costs one `send`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from duet.errors import DuetError
from duet.http.disconnect import disconnected, stopped
from duet.http.errors import envelope

DONE = b"data: [DONE]\n\n"
FAREWELL_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 2.0
"""After this long without a frame a comment is sent: programs between us and the client close connections that are silent."""

Put = Callable[[bytes], Awaitable[None]]
"""Sends frames to the client."""


class EventStream(Response):
    """Sends what `write` puts, as it comes, and comments while it puts nothing. When the client leaves, `write` is cancelled at
    once, even between two frames."""

    media_type = "text/event-stream"

    def __init__(
        self,
        write: Callable[[Put], Awaitable[None]],
        *,
        waiting: Callable[[], str],
        error: Callable[[DuetError], bytes],
        close: Callable[[], Awaitable[None]],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`waiting` says in words what a silent stream waits for. `error` makes the last frame of a stopping server. `close` is
        called at the end whatever happens, even if `write` was never called."""
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._write, self._waiting, self._error, self._close = write, waiting, error, close
        self._sent_at = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks: list[asyncio.Task[None]] = []
        ended: set[asyncio.Task[None]] = set()
        stopping = False
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for work in (self._written(send), disconnected(receive), self._keep_alive(send)):
                tasks.append(asyncio.create_task(work, name="event-stream"))
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            stopping = True  # only the stopping server cancels a request, and the client is told
        finally:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                await self._close()
        for task in ended:
            task.result()
        if stopping:
            with contextlib.suppress(TimeoutError):  # a client that does not read must not delay the stop
                async with asyncio.timeout(FAREWELL_SECONDS):
                    await send(_body(self._error(stopped()), more=False))
        elif tasks[0] in ended:
            await send(_body(b"", more=False))

    async def _written(self, send: Send) -> None:
        async def put(frames: bytes) -> None:
            await send(_body(frames))
            self._sent_at = time.monotonic()

        await self._write(put)

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
    """OpenAI's error after the stream has begun."""
    return b"data: " + envelope(error) + b"\n\n"


def comment(text: str) -> bytes:
    """A keep-alive that clients skip."""
    return f": {text}\n\n".encode()
