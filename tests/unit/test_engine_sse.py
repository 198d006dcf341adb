"""Server-sent events over plain ASGI: whatever ends a stream, it is closed, and silence is filled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from engine.api.shared import sse
from engine.api.shared.sse import EventStream, Put, error_frame


class Connection:
    """An ASGI server's side of one request: what was sent, and the client's leaving."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.left, self.closed = asyncio.Event(), 0

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def close(self) -> None:
        self.closed += 1

    async def run(self, write: Callable[[Put], Awaitable[None]]) -> None:
        stream = EventStream(write, waiting=lambda: "loading", error=error_frame, close=self.close)
        await stream({"type": "http"}, self.receive, self.send)  # type: ignore[arg-type]

    @property
    def bodies(self) -> list[tuple[bytes, bool]]:
        return [(message["body"], message["more_body"]) for message in self.sent[1:]]


async def two_frames(put: Put) -> None:
    await put(b"one")
    await put(b"two")


async def nothing(put: Put) -> None:
    await asyncio.Event().wait()


async def test_frames_are_sent_as_they_come_and_the_end_is_said_once() -> None:
    connection = Connection()
    await connection.run(two_frames)
    assert connection.sent[0]["type"] == "http.response.start"
    assert connection.bodies == [(b"one", True), (b"two", True), (b"", False)]
    assert connection.closed == 1


async def test_silence_is_filled_with_comments_that_say_what_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.01)
    connection = Connection()
    running = asyncio.create_task(connection.run(nothing))
    async with asyncio.timeout(5):
        while len(connection.bodies) < 3:
            await asyncio.sleep(0.001)
    connection.left.set()
    await running
    assert set(connection.bodies) == {(b": loading\n\n", True)}
    assert connection.closed == 1


async def test_a_client_that_leaves_ends_the_stream_without_a_word_more() -> None:
    connection, closed = Connection(), asyncio.Event()

    async def write(put: Put) -> None:
        try:
            await put(b"one")
            connection.left.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    await connection.run(write)
    assert connection.bodies == [(b"one", True)]
    assert closed.is_set()
    assert connection.closed == 1


async def test_a_stopping_server_says_so_even_before_the_first_frame() -> None:
    connection = Connection()
    running = asyncio.create_task(connection.run(nothing))
    await asyncio.sleep(0)
    running.cancel()
    await running
    ((body, more),) = connection.bodies
    assert b"stopping" in body
    assert not more
    assert connection.closed == 1


async def test_a_fault_is_raised_after_everything_is_closed() -> None:
    async def write(put: Put) -> None:
        await put(b"one")
        raise ZeroDivisionError

    connection = Connection()
    with pytest.raises(ZeroDivisionError):
        await connection.run(write)
    assert connection.bodies == [(b"one", True)]
    assert connection.closed == 1
