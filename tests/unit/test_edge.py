"""The edge of both services: who may call, how much they may send, how an error looks, and what the log says."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import stat
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Body, FastAPI, Request
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, Field

from duet.errors import Busy, DuetError
from duet.http.edge import install_edge
from duet.http.json_bodies import JsonRoute
from duet.keys import KEY_FILE, api_key

KEY = "duet-test"
BEARER = {"Authorization": f"Bearer {KEY}"}
LIMIT = 100


class Inner(BaseModel):
    text: str


class Asked(BaseModel):
    count: int = Field(1, ge=1)
    items: list[Inner] = []


def dialect_body(error: DuetError) -> bytes:
    return json.dumps({"type": "error", "error": {"type": error.code, "message": error.message}}).encode()


def make_app() -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.router.route_class = JsonRoute
    install_edge(
        app, key=KEY, allowed_hosts=("Studio.Local",), max_body_bytes=LIMIT, error_bodies={"/dialect": dialect_body}
    )

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/echo")
    async def echo(asked: Annotated[Asked, Body()]) -> int:
        return asked.count

    @app.post("/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    @app.post("/dialect/busy")
    async def dialect_busy(asked: Annotated[Asked, Body()]) -> None:
        raise Busy("come back", retry_after_seconds=7)

    @app.post("/dialects")
    async def dialects() -> None:
        raise Busy("come back")

    @app.get("/dialect/broken")
    async def dialect_broken() -> None:
        raise ZeroDivisionError

    @app.get("/busy")
    async def busy() -> None:
        raise Busy("come back", retry_after_seconds=7)

    @app.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError("secret detail")

    @app.get("/full")
    async def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/private/place")

    @app.get("/broken-stream")
    async def broken_stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            yield b"begun"
            raise ZeroDivisionError

        return StreamingResponse(parts())

    @app.get("/file")
    async def file() -> FileResponse:
        return FileResponse(__file__)

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            while True:
                yield b": waiting\n\n"
                await asyncio.sleep(0.001)

        return StreamingResponse(parts(), media_type="text/event-stream")

    return app


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=BEARER) as found:
        yield found


def error(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": KEY},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": "Bearer é".encode().decode("latin-1")},
        {"X-API-Key": "wrong"},
    ],
)
async def test_without_the_right_key_there_is_401(headers: dict[str, str]) -> None:
    transport = httpx.ASGITransport(make_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        answer = await client.get("/busy", headers=raw)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert error(answer)["code"] == "invalid_api_key"
        assert (await client.get("/health", headers=raw)).status_code == 200


@pytest.mark.parametrize("headers", [BEARER, {"Authorization": f"bearer  {KEY} "}, {"X-API-Key": KEY}])
async def test_the_key_comes_in_either_header(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    client.headers.pop("Authorization")
    assert (await client.post("/echo", json={}, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:18080", 200), ("127.0.0.1:1", 200), ("[::1]:18080", 200), ("[::1]", 200),
        ("host.docker.internal:18080", 200), ("studio.local", 200), ("studio.local:80", 200),
        ("evil.example", 403), ("localhost.evil.example", 403), ("evil.example:18080", 403), ("[::2]", 403), ("", 403),
        ("localhost@evil.example", 403), ("[::1].evil.example", 403), ("[::1]evil", 403), ("[::1", 403), ("::1", 403),
        ("[::1]:80:80", 403), ("localhost:80:80", 403), ("localhost:", 403), ("localhost:x", 403), ("localhost:-1", 403),
        ("localhost:999999", 403), ("localhost.", 403), ("localhost ", 403), (" localhost", 403), ("local host", 403),
        ("localhost,evil.example", 403), ("localhost/evil", 403), ("http://localhost", 403), ("localhost\\evil", 403),
        ("localhost#", 403), ("localhost?x", 403), ("127.1", 403), ("2130706433", 403), ("0.0.0.0", 403), (":80", 403),
        ("[::1%25lo]", 403), ("lоcalhost".encode().decode("latin-1"), 403), ("[127.0.0.1]", 403), ("@localhost", 403),
    ],
)  # fmt: skip
async def test_only_known_hosts_are_answered_even_on_open_paths(
    client: httpx.AsyncClient, host: str, status: int
) -> None:
    answer = await client.get("/health", headers=[(b"Host", host.encode("latin-1"))])
    assert answer.status_code == status
    if status == 403:
        assert error(answer)["code"] == "forbidden_host"


@pytest.mark.parametrize("hosts", [(), ("localhost", "localhost"), ("localhost", "evil.example")])
async def test_a_request_has_exactly_one_host(hosts: tuple[str, ...]) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", host.encode()) for host in hosts] + [(b"authorization", f"Bearer {KEY}".encode())]
    scope = {
        "type": "http", "method": "GET", "path": "/health", "headers": headers, "query_string": b"", "root_path": "",
        "scheme": "http", "server": ("localhost", 80), "client": ("127.0.0.1", 1), "http_version": "1.1",
    }  # fmt: skip
    await make_app()(scope, receive, send)
    assert sent[0]["status"] == 403


async def test_a_body_may_have_the_limit_and_not_one_byte_more(client: httpx.AsyncClient) -> None:
    async def chunks(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"x" * 10

    assert (await client.post("/size", content=b"x" * LIMIT)).json() == LIMIT
    assert (await client.post("/size", content=chunks(LIMIT // 10))).json() == LIMIT
    for content in (b"x" * (LIMIT + 1), chunks(LIMIT // 10 + 1)):
        answer = await client.post("/size", content=content)
        assert answer.status_code == 413
        assert error(answer)["code"] == "payload_too_large"
        assert error(answer)["param"] is None


async def test_a_form_that_is_too_large_names_its_file(client: httpx.AsyncClient) -> None:
    async def in_pieces() -> AsyncIterator[bytes]:
        yield b"x" * LIMIT
        yield b"x"

    for content in (b"x" * (LIMIT + 1), in_pieces()):
        answer = await client.post(
            "/size", content=content, headers={"Content-Type": "multipart/form-data; boundary=b"}
        )
        assert (answer.status_code, error(answer)["param"]) == (413, "file")


async def test_a_chunked_body_that_a_schema_reads_is_bounded_too(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'{"items": ['
        while True:
            yield b'{"text": "xxxxxxxxxx"},'

    answer = await client.post("/echo", content=endless(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b'{"count": 0}', "count"),
        (b'{"count": "many"}', "count"),
        (b'{"items": [{"text": "a"}, {}]}', "items[1].text"),
        (b'{"items": 3}', "items"),
        (b'{"count": 1', None),
        (b"[]", None),
        (b"", None),
    ],
)
async def test_a_wrong_body_is_400_and_names_the_parameter(
    client: httpx.AsyncClient, content: bytes, param: str | None
) -> None:
    answer = await client.post("/echo", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert error(answer)["param"] == param
    assert error(answer)["type"] == "invalid_request_error"


async def test_unknown_paths_and_methods_have_the_same_shape(client: httpx.AsyncClient) -> None:
    missing = await client.get("/nowhere")
    assert (missing.status_code, error(missing)["code"]) == (404, "not_found")
    wrong = await client.put("/echo")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST, OPTIONS")
    assert error(wrong)["message"] == "/echo takes POST, OPTIONS, not PUT"


@pytest.mark.parametrize("spelt", ["/echo/", "//echo", "/echo//", "///echo///"])
async def test_a_slash_too_much_finds_the_same_path_and_loses_no_body(client: httpx.AsyncClient, spelt: str) -> None:
    answer = await client.post(f"http://localhost{spelt}", json={"count": 7})
    assert (answer.status_code, answer.text) == (200, "7")


async def test_a_path_that_needs_no_key_is_open_in_one_spelling_only(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health/")).status_code == 200
    client.headers.pop("Authorization")
    assert (await client.get("/health")).status_code == 200
    for spelt in ("/health/", "//health", "/HEALTH", "/health/../busy", "/health%2f"):
        assert (await client.get(f"http://localhost{spelt}")).status_code == 401


async def test_head_has_the_headers_of_get_and_no_body(client: httpx.AsyncClient) -> None:
    for path, status in (("/health", 200), ("/busy", 429), ("/broken", 500), ("/nowhere", 404), ("/echo", 405)):
        got, asked = await client.get(path), await client.head(path)
        assert (asked.status_code, asked.content) == (status, b"")
        changing = {"x-request-id", "content-length"} if status in (404, 405, 500) else {"x-request-id"}
        assert {**asked.headers, **dict.fromkeys(changing)} == {**got.headers, **dict.fromkeys(changing)}


async def test_head_of_a_stream_ends_it(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(5):
        answer = await client.head("/endless")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("bytes=x", 400),
        ("nonsense", 400),
        ("bytes=999999999-", 416),
        ("bytes=5-2", 400),
        ("lines=1-2", 400),
        ("bytes=0-9", 206),
    ],
)
async def test_an_error_of_the_framework_is_told_in_our_words(
    client: httpx.AsyncClient, asked: str, status: int
) -> None:
    answer = await client.get("/file", headers={"Range": asked})
    assert answer.status_code == status
    if status >= 400:
        assert error(answer)["code"] == f"http_{status}"
        assert answer.headers.get("Content-Range", "bytes */").startswith("bytes */")
    assert (await client.head("/file", headers={"Range": asked})).content == b""


async def test_options_tells_the_methods_of_a_path(client: httpx.AsyncClient) -> None:
    for path, methods in (("/health", "GET, HEAD, OPTIONS"), ("/echo", "POST, OPTIONS")):
        answer = await client.options(path)
        assert (answer.status_code, answer.headers["Allow"], answer.content) == (204, methods, b"")
    assert (await client.options("/nowhere")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status", "code"),
    [
        ("POST", "/dialect/busy", b"{}", {}, 429, "server_busy"),
        ("POST", "/dialect/busy", b'{"count": 0}', {}, 400, "invalid_value"),
        ("POST", "/dialect/busy", b"x" * (LIMIT + 1), {}, 413, "payload_too_large"),
        ("POST", "/dialect/busy", b"{}", {"Authorization": "Bearer wrong"}, 401, "invalid_api_key"),
        ("POST", "/dialect/busy", b"{}", {"Host": "evil.example"}, 403, "forbidden_host"),
        ("PUT", "/dialect/busy", b"{}", {}, 405, "method_not_allowed"),
        ("GET", "/dialect", b"", {}, 404, "not_found"),
        ("GET", "/dialect/broken", b"", {}, 500, "internal_error"),
    ],
)
async def test_a_dialect_says_what_errors_below_its_path_look_like(
    client: httpx.AsyncClient, method: str, path: str, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = await client.request(
        method, path, content=content, headers={"Content-Type": "application/json", **headers}
    )
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == code
    assert answer.headers.get("Retry-After") == ("7" if status == 429 else None)


async def test_a_dialect_does_not_speak_for_its_neighbours(client: httpx.AsyncClient) -> None:
    assert (await client.post("/dialects")).json()["error"]["code"] == "server_busy"


async def test_an_error_says_when_to_come_back(client: httpx.AsyncClient) -> None:
    answer = await client.get("/busy")
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")


async def test_a_fault_of_ours_is_logged_and_not_shown(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await client.get("/broken", headers={"X-Request-Id": "abc"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "abc" in error(answer)["message"]
    assert "secret detail" in caplog.text


async def test_a_full_disk_is_no_fault_of_ours(client: httpx.AsyncClient) -> None:
    answer = await client.get("/full")
    assert (answer.status_code, error(answer)["code"]) == (507, "disk_full")
    assert "No space left" in error(answer)["message"]
    assert "/private" not in answer.text


async def test_a_fault_in_a_stream_that_has_begun_ends_the_connection(client: httpx.AsyncClient) -> None:
    with pytest.raises(ZeroDivisionError):
        await client.get("/broken-stream")


@pytest.mark.parametrize(("given", "kept"), [("abc-1.2_3", True), ("a b", False), ("x" * 65, False), ("a\tb", False)])
async def test_a_request_id_is_kept_only_if_it_is_harmless(client: httpx.AsyncClient, given: str, kept: bool) -> None:
    answer = await client.get("/health", headers={"X-Request-Id": given})
    assert (answer.headers["X-Request-Id"] == given) == kept
    assert answer.headers["X-Request-Id"]


async def test_a_request_is_one_log_line_without_its_query(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "duet.http.edge")
    await client.get("/busy?secret=1")
    (record,) = [record for record in caplog.records if getattr(record, "action", "") == "request"]
    assert record.getMessage() == "GET /busy"
    assert record.__dict__["status"] == 429


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with ThreadPoolExecutor(8) as threads:
        keys = set(threads.map(lambda _: api_key(home), range(16)))
    (key,) = keys
    assert key.startswith("duet-")
    assert len(key) > 40
    assert stat.S_IMODE((home / KEY_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert [path.name for path in home.iterdir()] == [KEY_FILE]


def test_a_key_that_the_owner_wrote_is_kept_and_an_empty_one_is_an_error(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_text("mine\n")
    assert api_key(tmp_path) == "mine"
    (tmp_path / KEY_FILE).write_text("\n")
    with pytest.raises(DuetError, match="empty"):
        api_key(tmp_path)
