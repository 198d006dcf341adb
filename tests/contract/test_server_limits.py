"""What one connection may take, over real sockets: heads, bodies and clients that stop, and how many there may be."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from duet.http.edge import install_edge
from duet.http.protocol import BoundedProtocol, Limits
from duet.http.server import Server

SHORT = Limits(
    head_seconds=1, idle_seconds=2, body_window_seconds=1, body_window_bytes=100, unread_seconds=1, linger_seconds=0.3,
    closing_seconds=1, connections=20,
)  # fmt: skip
HEAD = b"Host: localhost\r\nAuthorization: Bearer k\r\n"
GET = b"GET /health HTTP/1.1\r\n" + HEAD + b"\r\n"


def make_app(ended: asyncio.Event) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    install_edge(app, key="k", allowed_hosts=(), max_body_bytes=64 << 20)

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    @app.post("/slow")
    async def slow(request: Request) -> int:
        size = len(await request.body())
        await asyncio.sleep(4)
        return size

    @app.get("/ticks")
    async def ticks() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(8):
                yield b": tick\n\n"
                await asyncio.sleep(0.5)

        return StreamingResponse(parts())

    @app.get("/flood")
    async def flood() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 65536
                    await asyncio.sleep(0)
            finally:
                ended.set()

        return StreamingResponse(parts())

    return app


@dataclass
class Service:
    port: int
    server: Server
    flood_ended: asyncio.Event

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Connection(reader, writer)
        finally:
            writer.close()

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)


@dataclass
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, *pieces: bytes, every: float = 0.02) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(every)

    async def answer(self) -> tuple[int, Any]:
        """One answer with a Content-Length: its status and its JSON."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        size = int(head.partition("content-length: ")[2].partition("\r")[0])
        return int(head.split()[1]), json.loads(await self.reader.readexactly(size))

    async def rest(self) -> bytes:
        """What comes until the connection ends."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""


@asynccontextmanager
async def running(limits: Limits) -> AsyncIterator[Service]:
    class Protocol(BoundedProtocol):
        pass

    Protocol.limits = limits
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    ended = asyncio.Event()
    server = Server(make_app(ended), protocol=Protocol)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(50):
            while not server.started:
                await asyncio.sleep(0.01)
            yield Service(listener.getsockname()[1], server, ended)
    finally:
        server.should_exit = True
        await serving


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with running(SHORT) as found:
        yield found
        async with found.connection() as connection:
            await connection.send(GET)
            assert await connection.answer() == (200, "ok")


def request(method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\n".encode()
        + HEAD
        + "".join(f"{one}\r\n" for one in headers).encode()
        + b"\r\n"
        + body
    )


LARGE: list[tuple[str, list[bytes]]] = [
    ("one header", [b"GET /health HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n"]),
    ("one header that does not end", [b"GET /health HTTP/1.1\r\nX: "] + [b"a" * 10_000] * 30),
    ("a name that does not end", [b"GET /health HTTP/1.1\r\n"] + [b"a" * 10_000] * 30),
    ("many headers", [b"GET /health HTTP/1.1\r\n" + b"".join(b"X%d: a\r\n" % i for i in range(300)) + b"\r\n"]),
    ("headers without end", [b"GET /health HTTP/1.1\r\n"] + [b"X: " + b"a" * 8000 + b"\r\n"] * 40),
    ("a long path", [b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HEAD + b"\r\n"]),
    ("a path that does not end", [b"GET /"] + [b"a" * 10_000] * 30),
    ("a query that does not end", [b"GET /health?"] + [b"a" * 10_000] * 30),
]


@pytest.mark.parametrize("pieces", [case[1] for case in LARGE], ids=[case[0] for case in LARGE])
async def test_a_head_is_bounded_without_a_key_too(service: Service, pieces: list[bytes]) -> None:
    for first in ([], [GET]):  # as the first request, and as the second one of its connection
        async with service.connection() as connection:
            if first:
                await connection.send(*first)
                assert (await connection.answer())[0] == 200
            try:
                await connection.send(*pieces, every=0)
            except ConnectionError:
                pytest.fail("closed before the answer could be read")
            status, body = await connection.answer()
            assert (status, body["error"]["code"]) in ((431, "head_too_large"), (400, "invalid_value"))
            assert status == 431 or pieces[0].endswith(b"\r\n")  # a name of that length is no name
            assert await connection.rest() == b""


async def test_a_head_of_the_usual_size_is_taken(service: Service) -> None:
    async with service.connection() as connection:
        await connection.send(request("GET", "/health", *[f"X{i}: {'a' * 300}" for i in range(190)]))
        assert (await connection.answer())[0] == 200


TRAILING: list[tuple[str, list[bytes]]] = [
    ("a trailer", [b"5\r\nhello\r\n0\r\nX: "] + [b"a" * 10_000] * 30),
    ("an extension of a chunk", [b"5;"] + [b"a" * 10_000] * 30),
    ("the length of a chunk", [b"0" * 10_000] * 30),
]


@pytest.mark.parametrize("pieces", [case[1] for case in TRAILING], ids=[case[0] for case in TRAILING])
async def test_what_a_body_brings_beside_itself_is_bounded(service: Service, pieces: list[bytes]) -> None:
    async with service.connection() as connection:
        await connection.send(request("POST", "/size", "Transfer-Encoding: chunked"), *pieces, every=0)
        assert (await connection.answer())[0] in (400, 431)
        assert await connection.rest() == b""


@pytest.mark.parametrize(
    "begun",
    [b"", b"GET /health HTTP/1.1\r\nHost: loc", b"G", b"\r\n", GET + b"GET /hea"],
    ids=["silent", "head", "G", "line", "second"],
)
async def test_a_head_that_does_not_end_is_ended(service: Service, begun: bytes) -> None:
    async with service.connection() as connection:
        await connection.send(begun)
        async with asyncio.timeout(8):
            said = await connection.rest()
    assert b"request_timeout" in said or begun.startswith(GET)  # then it ends as an idle connection does


async def test_a_head_that_comes_a_byte_at_a_time_is_ended_too(service: Service) -> None:
    async with service.connection() as connection:
        reading = asyncio.create_task(connection.rest())
        async with asyncio.timeout(8):
            while not reading.done():
                connection.writer.write(b"\r\n" if service.connections else b"x")
                await asyncio.sleep(0.1)
    assert b" 408 " in await reading


async def test_a_connection_that_waits_for_its_next_request_is_closed_in_silence(service: Service) -> None:
    async with service.connection() as connection:
        await connection.send(GET)
        assert (await connection.answer())[0] == 200
        async with asyncio.timeout(8):
            assert await connection.rest() == b""


@pytest.mark.parametrize("framing", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("slowly", [False, True])
async def test_a_body_that_stops_is_ended(service: Service, framing: str, slowly: bool) -> None:
    async with service.connection() as connection:
        await connection.send(request("POST", "/size", framing), b"5\r\nhello\r\n")
        reading = asyncio.create_task(connection.rest())
        async with asyncio.timeout(8):
            while not reading.done():
                if slowly:
                    connection.writer.write(b"1\r\nx\r\n")
                await asyncio.sleep(0.2)
    said = await reading
    assert b"HTTP/1.1 408" in said
    assert b"the body stopped" in said


async def test_a_body_that_keeps_coming_is_taken_however_long_it_takes(service: Service) -> None:
    async with service.connection() as connection:
        await connection.send(request("POST", "/size", "Content-Length: 4000"), *[b"x" * 200] * 20, every=0.2)
        assert await connection.answer() == (200, 4000)


async def test_a_refused_body_is_thrown_away_for_a_while(service: Service) -> None:
    """The client has its answer before it has sent everything, and does not stop sending."""
    async with service.connection() as connection:
        await connection.send(b"POST /size HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n", b"x" * 1000)
        assert (await connection.answer())[0] == 401
        async with asyncio.timeout(8):
            while not connection.reader.at_eof():
                connection.writer.write(b"x" * 1000)
                await asyncio.sleep(0.05)


async def test_work_and_streams_take_as_long_as_they_take(service: Service) -> None:
    async with service.connection() as connection, service.connection() as streamed:
        await connection.send(request("POST", "/slow", "Content-Length: 5", body=b"hello\r\n"))  # and an empty line
        await streamed.send(request("GET", "/ticks", "Connection: close"))
        assert await connection.answer() == (200, 5)
        assert (await streamed.rest()).count(b"tick") == 8


async def test_a_client_that_does_not_read_is_left(service: Service) -> None:
    async with service.connection() as connection:
        await connection.send(request("GET", "/flood"))
        async with asyncio.timeout(10):
            await service.flood_ended.wait()
            while service.connections:
                await asyncio.sleep(0.05)


async def test_more_connections_than_there_may_be_are_told_so() -> None:
    async with running(replace(SHORT, head_seconds=30)) as service:
        silent = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(SHORT.connections)]
        async with service.connection() as connection:
            status, body = await connection.answer()
            assert (status, body["error"]["code"], body["error"]["retry_after"]) == (503, "unavailable", 5)
            assert await connection.rest() == b""
        silent.pop()[1].close()
        await asyncio.sleep(0.2)
        async with service.connection() as connection:
            await connection.send(GET)
            assert (await connection.answer())[0] == 200
        for _, writer in silent:
            writer.close()


async def test_silent_connections_keep_nobody_out_for_long(service: Service) -> None:
    silent = [await asyncio.open_connection("127.0.0.1", service.port) for _ in range(SHORT.connections)]
    async with asyncio.timeout(10):
        while service.connections:
            await asyncio.sleep(0.1)
    for _, writer in silent:
        writer.close()


UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")


@pytest.mark.parametrize(
    "offer", [UPGRADE, ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"), ()]
)
@pytest.mark.parametrize("split", [False, True])
async def test_an_offer_of_another_protocol_loses_no_body(
    service: Service, offer: tuple[str, ...], split: bool
) -> None:
    plain = request("POST", "/size", *offer, "Content-Length: 5")
    chunked = request("POST", "/size", *offer, "Transfer-Encoding: chunked")
    async with service.connection() as connection:
        for head, body in (
            (plain, b"hello"),
            (chunked, b"5\r\nhello\r\n0\r\n\r\n"),
            (request("GET", "/health", *offer), b""),
        ):
            await connection.send(*([head, *(body[i : i + 1] for i in range(len(body)))] if split else [head + body]))
            assert await connection.answer() == (200, 5 if body else "ok")
        await connection.send(plain + b"hello" + request("GET", "/health", *offer) + GET)  # all in one piece
        assert [await connection.answer() for _ in range(3)] == [(200, 5), (200, "ok"), (200, "ok")]


POST = b"POST /size HTTP/1.1\r\n" + HEAD
BAD = [
    b"GET /health\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /health HTTP/1.1\nHost: a\n\n",
    b"GET /\xff HTTP/1.1\r\n" + HEAD + b"\r\n",
    b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\nX: a\0b\r\n\r\n",
    b"GET /health HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
    b"CONNECT evil:80 HTTP/1.1\r\n\r\n",
    b"NONSENSE / HTTP/1.1\r\n\r\n",
    POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    POST + b"Content-Length: -1\r\n\r\n",
    POST + b"Transfer-Encoding: xchunked\r\n\r\n",
    POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
]


@pytest.mark.parametrize("sent", BAD, ids=[repr(sent[:40]) for sent in BAD])
async def test_what_is_no_http_is_told_in_our_words(service: Service, sent: bytes) -> None:
    async with service.connection() as connection:
        await connection.send(sent)
        async with asyncio.timeout(8):
            status, body = await connection.answer()
    assert status in (400, 403, 415)
    assert body["error"]["message"]


async def test_an_ordinary_client_notices_nothing(service: Service) -> None:
    async with httpx.AsyncClient(
        base_url=f"http://localhost:{service.port}", headers={"Authorization": "Bearer k"}
    ) as client:
        for _ in range(3):
            assert (await client.post("/size", content=b"x" * (3 << 20))).json() == 3 << 20
            assert (await client.get("/health")).json() == "ok"
