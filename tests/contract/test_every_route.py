"""Every route of both services, by every method: which need the key, and what none of them does."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import asr_router.app
import engine.app
from asr_router.transcribing import Transcriber
from duet.settings import Settings

KEY = "duet-test"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
OPEN = {"/", "/docs", "/health", "/openapi.json", "/ready"}
"""As documented in docs/api.md."""
WRONG_KEYS: tuple[dict[str, str], ...] = (
    {}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}, {"Authorization": f"Basic {KEY}"},
    {"Authorization": f"Bearer {KEY}x"}, {"Authorization": f"Bearer {KEY[:-1]}"}, {"X-Api-Key": "wrong"},
    {"Cookie": f"key={KEY}"},
)  # fmt: skip


def apps(home: Path) -> Iterator[FastAPI]:
    settings, backend = Settings(home=home), object()  # no request without a key gets that far
    any_backend: Any = backend
    yield engine.app.create_app(any_backend, settings, key=KEY)
    yield asr_router.app.create_app(settings, Transcriber([], max_audio_seconds=1), key=KEY)


def paths_of(app: FastAPI) -> list[str]:
    found = [re.sub(r"{[^}]*}", "abc", path) for path in app.openapi()["paths"]]
    assert len(found) > 5
    return [*found, *OPEN, "/metrics", "/redoc", "/nowhere", "/v1", "/v1/models/a/b"]


def spelt(path: str) -> list[str]:
    return [
        path,
        f"{path}/",
        f"/{path}",
        f"{path}//",
        path.upper(),
        f"{path}%2f",
        f"{path};x",
        f"/health%2f..{path}",
        f"{path}%00",
    ]


def address(path: str) -> httpx.URL:
    return httpx.URL("http://localhost", raw_path=path.encode())


@pytest.fixture(params=[0, 1], ids=["engine", "router"])
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    app = list(apps(tmp_path))[request.param]
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield app, client


async def test_every_route_needs_the_key_but_the_documented_ones(service: tuple[FastAPI, httpx.AsyncClient]) -> None:
    app, client = service
    for path in paths_of(app):
        for method in METHODS:
            for written in spelt(path):
                for headers in WRONG_KEYS if written == path else WRONG_KEYS[:2]:
                    answer = await client.request(method, address(written), headers=headers)
                    if written not in OPEN:
                        assert answer.status_code == 401, (method, written, headers)


async def test_the_open_ones_are_answered_without_a_key(service: tuple[FastAPI, httpx.AsyncClient]) -> None:
    _, client = service
    for path in OPEN - {"/ready"}:  # it asks the backend, which is none here
        got, head = await client.get(path), await client.head(path)
        assert (got.status_code, head.status_code, head.content) == (200, 200, b"")
        assert got.headers["content-length"] == head.headers["content-length"]
    assert set((await client.get("/")).json()) == {"name", "version", "docs", "openapi", "models", "health", "ready"}


async def test_a_page_of_this_machine_may_ask_about_every_route(service: tuple[FastAPI, httpx.AsyncClient]) -> None:
    app, client = service
    for path in paths_of(app):
        for origin, status in (("http://localhost:3000", 204), ("https://evil.example", 403)):
            asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            answer = await client.options(path, headers=asks)
            assert answer.status_code == status
            assert answer.headers.get("Access-Control-Allow-Origin") == (origin if status == 204 else None)


async def test_every_path_says_what_it_takes(service: tuple[FastAPI, httpx.AsyncClient]) -> None:
    app, client = service
    client.headers["Authorization"] = f"Bearer {KEY}"
    for path, operations in app.openapi()["paths"].items():
        allowed = {method.upper() for method in operations} | {"OPTIONS"} | ({"HEAD"} if "get" in operations else set())
        for written in spelt(re.sub(r"{[^}]*}", "abc", path))[:4]:
            answer = await client.options(address(written))
            assert (answer.status_code, set(answer.headers["Allow"].split(", "))) == (204, allowed)
        for method in {"PUT", "PATCH", "TRACE"} - allowed:
            answer = await client.request(method, re.sub(r"{[^}]*}", "abc", path))
            assert answer.status_code == 405
            assert answer.json()["error"]["code"] == "method_not_allowed"
            assert method in answer.json()["error"]["message"]


async def test_every_body_is_read_by_a_reader_of_ours(service: tuple[FastAPI, httpx.AsyncClient]) -> None:
    """Whatever is sent to whatever path, the words of the answer are ours."""
    app, client = service
    client.headers["Authorization"] = f"Bearer {KEY}"
    bodies = (b"", b"{", b"[1]", b"\xff", b"null", b"--x\r\n", b'{"a": NaN}', b"[" * 100_000, b'"\xff"')
    kinds = (
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "text/plain",
        "",
        "a/b; charset=\xff",
    )
    for path, operations in app.openapi()["paths"].items():
        if "requestBody" not in operations.get("post", {}):
            continue
        for body in bodies:
            for kind in kinds:
                for more in ({}, {"Content-Encoding": "gzip"}, {"Content-Encoding": "br"}):
                    headers = {**more, **({"Content-Type": kind} if kind else {})}
                    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
                    answer = await client.post(path, content=body, headers=raw)
                    assert answer.status_code in (400, 415), (path, body[:20], headers, answer.text)
                    error = answer.json()["error"]
                    assert error["type"] == "invalid_request_error"
                    assert "parsing the body" not in error["message"]
                    assert "cannot be read" not in error["message"] or "part" in error["message"]
