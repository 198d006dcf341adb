"""What one connection may take: bytes and time of a head, time of a body, time of a client that does not read.

uvicorn's protocol over httptools has no such bounds. It is httptools and not h11, which is a third as fast (148 against 46 µs a
request), takes what may hide a second request (both Content-Length and Transfer-Encoding, folded headers, bare line feeds), and
bounds the head alone.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from duet.errors import BodyStopped, DuetError, HeadTooLarge, InvalidRequest, Unavailable
from duet.http.errors import envelope

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Of one connection, and how many there may be. A stream that is read lives on without a bound."""

    head_bytes: int = 64 << 10
    head_fields: int = 200
    head_seconds: float = 15
    """From the connection's start, or from the first byte of a later request, to the end of its head."""
    idle_seconds: int = 20
    """Between two requests. More than the 5 s of httpx and the 15 s of aiohttp, which keep connections for so long."""
    body_window_seconds: float = 30
    body_window_bytes: int = 1024
    """A body must bring as much in each window."""
    unread_seconds: float = 120
    """How long a client may leave an answer unread when all buffers are full."""
    linger_seconds: float = 2
    """How long what a refused client still sends is thrown away, so that it reads the refusal before the connection ends."""
    closing_seconds: float = 30
    connections: int = 1000


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `sweep` is called about once a second. Times are the loop's."""

    limits = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        now = self.loop.time()
        self._head_since: float | None = now
        self._head_bytes = self._head_fields = self._unseen_bytes = 0
        self._in_body = self._refused = self._replaying = False
        self._window_since, self._window_bytes = now, 0
        self._unread_since: float | None = None
        self._drained_since: float | None = None
        self._closing_since: float | None = None
        if len(self.connections) > self.limits.connections:
            self._refuse(Unavailable(f"this service has {self.limits.connections} connections already"), linger=False)

    # What comes.

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._refused:
            return
        if self._head_since is None and not self._in_body:
            self._head_since = self.loop.time()
        self._unseen_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            if not self._refused:
                self._refuse(InvalidRequest("this is no HTTP/1.1 that can be read"))
            return
        # Whatever the parser has not told of, it may be keeping: a header, a trailer, a chunk's extension.
        if not self._refused and (self._unseen_bytes > self.limits.head_bytes or self._head_is_too_large()):
            self._refuse(self._head_too_large())

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as stopped:
                data = data[stopped.args[0] :]
                self._ignore_upgrade()
            else:
                return

    def _ignore_upgrade(self) -> None:
        """There is no other protocol here, so a request that offers one is a plain request. The parser has stopped before its
        body: another one goes on, which is told how the body is framed. Java's client offers h2c with its first request."""
        framing = [
            name + b": " + value + b"\r\n"
            for name, value in self.headers
            if name in (b"content-length", b"transfer-encoding")
        ]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self._replaying = True
        self.parser.feed_data(b"POST / HTTP/1.1\r\n")
        self.parser.feed_data(b"".join([*framing, b"\r\n"]))
        self._replaying = False

    # The parser's calls. `_replaying` is while a second parser is told of a head that the first one has told of.

    def on_message_begin(self) -> None:
        self._unseen_bytes = 0
        if self._refused or self._replaying:
            return
        super().on_message_begin()
        self._head_bytes = self._head_fields = 0

    def on_url(self, url: bytes) -> None:
        self._unseen_bytes = 0
        if self._replaying:
            return
        self._head_bytes += len(url)
        if self._head_bytes <= self.limits.head_bytes:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._unseen_bytes = 0
        if self._replaying or self._in_body:
            return  # a trailer says nothing to us
        self._head_bytes += len(name) + len(value) + 4
        self._head_fields += 1
        if not self._head_is_too_large():
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unseen_bytes = 0
        if self._refused or self._replaying:
            return
        if self._head_is_too_large():
            self._refuse(self._head_too_large())
            return
        self._head_since, self._in_body = None, True
        self._window_since, self._window_bytes, self._drained_since = self.loop.time(), 0, None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unseen_bytes = 0
        if self._refused:
            return
        self._window_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unseen_bytes = 0
        if self._refused or (self.parser.should_upgrade() and not self._replaying):
            return  # an offer of another protocol ends the head, not the body
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._in_body:
            self._drained_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._unread_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._unread_since = None
        super().resume_writing()

    # What is overdue.

    def sweep(self, now: float) -> None:
        """End this connection if its client has taken too long."""
        limits = self.limits
        if self.transport.is_closing():
            self._closing_since = self._closing_since or now
            if now - self._closing_since > limits.closing_seconds:
                self.transport.abort()
        elif self._unread_since is not None and now - self._unread_since > limits.unread_seconds:
            logger.info("a client does not read its answer", extra={"action": "unread"})
            self.transport.abort()
        elif self._refused or self.flow.read_paused:
            self._window_since, self._window_bytes = now, 0  # what does not come is held back by us
        elif self._head_since is not None and not self._is_idle():
            self._head_since = now  # some clients send an empty line after a body
        elif self._head_since is not None and now - self._head_since > limits.head_seconds:
            self._refuse(BodyStopped(f"the head of the request did not end within {limits.head_seconds:.0f} s"))
        elif self._in_body:
            self._sweep_body(now)

    def _sweep_body(self, now: float) -> None:
        limits = self.limits
        if self._drained_since is not None and now - self._drained_since > limits.body_window_seconds:
            self.transport.close()  # the answer was given long ago
        elif self.cycle.waiting_for_100_continue:
            self._window_since = now
        elif now - self._window_since > limits.body_window_seconds:
            if self._window_bytes < limits.body_window_bytes:
                self._refuse(
                    BodyStopped(f"the body stopped: {self._window_bytes} bytes in {limits.body_window_seconds:.0f} s")
                )
            self._window_since, self._window_bytes = now, 0

    # Refusals.

    def _is_idle(self) -> bool:
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    def _head_is_too_large(self) -> bool:
        return self._head_bytes > self.limits.head_bytes or self._head_fields > self.limits.head_fields

    def _head_too_large(self) -> DuetError:
        limits = self.limits
        return HeadTooLarge(
            f"the head of the request is larger than {limits.head_bytes} bytes or {limits.head_fields} headers"
        )

    def _refuse(self, error: DuetError, *, linger: bool = True) -> None:
        """Answer for the service and end the connection. An answer that has begun is cut off instead."""
        logger.debug("%s", error.message, extra={"action": "connection_refused", "status": error.status})
        self._refused = True
        if self.pipeline or (
            self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
        ):
            self.transport.abort()
            return
        self.transport.write(_answer(error))
        if linger:
            self.loop.call_later(self.limits.linger_seconds, self.transport.close)
        else:
            self.transport.close()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # whoever waits for the body is told that its client has gone
            self.cycle.message_event.set()


def _answer(error: DuetError) -> bytes:
    body = envelope(error)
    headers: dict[str, Any] = {"content-type": "application/json", "content-length": len(body), "connection": "close"}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = error.retry_after_seconds
    lines = [
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
        *(f"{name}: {headers[name]}" for name in headers),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
