"""Bodies of JSON: taken in every way in which clients send them, told what is wrong with them, and never parsed on the event loop
when they are long."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from duet.errors import Busy
from duet.http import json_bodies
from duet.http.edge import install_edge
from duet.http.json_bodies import MAX_VALUES, THREAD_BYTES, JsonRoute, parsed

LIMIT = 20 << 20
threads: list[bool] = []
"""Whether each check of a body was made by the thread of the event loop."""


def _noted(text: str) -> str:
    threads.append(threading.current_thread() is threading.main_thread())
    return text


class Asked(BaseModel):
    model_config = ConfigDict(extra="allow")

    text: Annotated[str, AfterValidator(_noted)] = ""
    number: float = Field(0, ge=0, le=2)
    inner: list[dict[str, Any]] = []


def make_app() -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None)
    app.router.route_class = JsonRoute
    install_edge(app, key="k", allowed_hosts=(), max_body_bytes=LIMIT)

    @app.post("/ask")
    async def ask(body: Asked) -> dict[str, Any]:
        return {"length": len(body.text), "beginning": body.text[:20]}

    @app.get("/health")
    async def health() -> str:
        return "ok"

    return app


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_app())
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers={"Authorization": "Bearer k"}
    ) as found:
        yield found


async def post(client: httpx.AsyncClient, body: bytes, kind: str | None = "application/json") -> httpx.Response:
    return await client.post("/ask", content=body, headers={} if kind is None else {"Content-Type": kind})


@pytest.mark.parametrize(
    "kind",
    [
        None, "", "application/json", "APPLICATION/JSON", "application/json;charset=utf-8", 'application/json; charset="UTF-8"',
        "application/vnd.api+json", "text/plain", "text/plain; charset=utf-8", "application/x-www-form-urlencoded",
        "application/octet-stream", "*/*", "nonsense", "application/json; profile=x", ";;;", "application/json; charset=us-ascii",
    ],
)  # fmt: skip
async def test_json_is_taken_whatever_its_content_type_says(client: httpx.AsyncClient, kind: str | None) -> None:
    assert (await post(client, b'{"text": "abc"}', kind)).json() == {"length": 3, "beginning": "abc"}


@pytest.mark.parametrize(
    ("body", "beginning"),
    [
        (b'\xef\xbb\xbf{"text": "abc"}', "abc"), (b' \r\n\t{"text": "abc"}\n', "abc"), ('{"text": "会议"}'.encode(), "会议"),
        (b'{"text": "\\u4f1a\\ud83d\\ude00"}', "会😀"), (b'{"text": "a", "text": "b"}', "b"), (b'{"text": "\\u0000"}', "\0"),
    ],
)  # fmt: skip
async def test_json_as_clients_write_it(client: httpx.AsyncClient, body: bytes, beginning: str) -> None:
    assert (await post(client, body)).json()["beginning"] == beginning


WRONG: list[tuple[str, bytes, str | None, str | None, str]] = [
    ("nothing", b"", "application/json", None, "is empty"),
    ("blanks", b" \n ", "application/json", None, "is empty"),
    ("a list", b"[1]", "application/json", None, "a list"),
    ("a text", b'"x"', "application/json", None, "a text"),
    ("a number", b"1", "application/json", None, "a number"),
    ("true", b"true", "application/json", None, "true or false"),
    ("null", b"null", "application/json", None, "null"),
    ("cut off", b'{"text": "a', "application/json", None, "line 1, column 10"),
    ("trailing comma", b'{"text": "a",\n}', "application/json", None, "line 2"),
    ("single quotes", b"{'text': 'a'}", "application/json", None, "column 2"),
    ("a comment", b'{} // "a"', "application/json", None, "column 4"),
    ("two bodies", b"{}{}", "application/json", None, "column 3"),
    ("a form", b"text=a&number=1", "application/x-www-form-urlencoded", None, "not JSON"),
    ("a form with parts", b"--x--", "multipart/form-data; boundary=x", "Content-Type", "takes JSON"),
    ("UTF-16 with a mark", '{"text": "a"}'.encode("utf-16"), "application/json", None, "UTF-16"),
    ("UTF-16", '{"text": "a"}'.encode("utf-16-le"), "application/json; charset=utf-16", None, "UTF-16"),
    ("UTF-32", '{"text": "a"}'.encode("utf-32-be"), "application/json", None, "UTF-32"),
    ("latin-1", '{"text": "é"}'.encode("latin-1"), "application/json", None, "byte 10"),
    ("latin-1 that says so", '{"text": "é"}'.encode("latin-1"), "a/b; charset=ISO-8859-1", "Content-Type", "iso-8859-1"),
    ("half a character", '{"text": "会"}'.encode()[:-3], "application/json", None, "not UTF-8"),
    ("NaN", b'{"number": NaN}', "application/json", "number", "NaN is not JSON"),
    ("NaN far inside", b'{"inner": [{"a": 1}, {"b": [0, NaN]}]}', "application/json", "inner[1].b[1]", "NaN"),
    ("-Infinity", b'{"zz": -Infinity}', "application/json", "zz", "-Infinity"),
    ("NaN in broken JSON", b'{"number": NaN', "application/json", None, "NaN"),
    ("NaN alone", b"NaN", "application/json", None, "NaN"),
    ("beyond doubles", b'{"number": 1e400}', "application/json", "number", "less than or equal to 2"),
    ("many digits", b'{"number": ' + b"9" * 5000 + b"}", "application/json", None, "4300 digits"),
    ("nested", b'{"a": ' + b"[" * 100_000, "application/json", None, "nested too deeply"),
    ("nested and closed", b'{"a": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001, "application/json", None, "nested too deeply"),
    ("a control character", b'{"text": "a\nb"}', "application/json", None, "control character"),
    ("a wrong field", b'{"number": 3}', "application/json", "number", "must be less than or equal to 2"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "kind", "param", "said"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
async def test_what_is_no_body_is_refused_by_what_it_is(
    client: httpx.AsyncClient, body: bytes, kind: str | None, param: str | None, said: str
) -> None:
    for content in (body, body + b" " * THREAD_BYTES):  # parsed here, and in a thread
        answer = await post(client, content, kind)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), answer.text
        assert said in error["message"]
        assert "Input should" not in error["message"]


async def test_values_without_end_are_refused_before_they_are_parsed(client: httpx.AsyncClient) -> None:
    started = time.process_time()
    for values in (b"[]," * (MAX_VALUES // 2 + 1), b"1," * (MAX_VALUES + 1), b"{}," * (MAX_VALUES // 2 + 1)):
        answer = await post(client, b'{"a": [' + values + b"1]}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")
    assert time.process_time() - started < 2


async def test_a_short_body_is_checked_at_once_and_a_long_one_in_a_thread(client: httpx.AsyncClient) -> None:
    for size, at_once in ((10, True), (THREAD_BYTES, False)):
        threads.clear()
        assert (await post(client, json.dumps({"text": "x" * size}).encode())).json()["length"] == size
        assert threads == [at_once]


async def test_others_are_answered_while_a_long_body_is_checked(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go = threading.Event(), threading.Event()

    def held(data: bytes, charset: bytes = b"") -> dict[str, Any]:
        entered.set()
        assert go.wait(30)
        return parsed(data, charset)

    monkeypatch.setattr(json_bodies, "parsed", held)
    asking = asyncio.create_task(post(client, json.dumps({"text": "x" * THREAD_BYTES}).encode()))
    try:
        async with asyncio.timeout(10):
            while not entered.is_set():
                await asyncio.sleep(0.001)
            assert (await client.get("/health")).status_code == 200
            assert not asking.done()
    finally:
        go.set()
    assert (await asking).status_code == 200


async def test_bodies_that_are_read_together_are_bounded(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_bodies, "MAX_HELD_BYTES", 1000)
    answer = await post(client, json.dumps({"text": "x" * 1000}).encode())
    assert (answer.status_code, answer.json()["error"]["code"], answer.headers["Retry-After"]) == (
        Busy.status, Busy.code, str(Busy.usual_retry_seconds),
    )  # fmt: skip
    assert (await post(client, b"{}")).status_code == 200


async def test_the_description_of_the_api_still_knows_the_body(client: httpx.AsyncClient) -> None:
    found = (await client.get("/openapi.json")).json()
    assert found["paths"]["/ask"]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "/Asked"
    )
