"""Which web pages may call a service: a browser's question is answered without the key, and every answer is marked for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI, Response

from duet.errors import Busy
from duet.http.edge import install_edge
from duet.settings import LOCAL_ORIGINS, SettingsError, load_settings

KEY = "duet-test"
BEARER = {"Authorization": f"Bearer {KEY}"}
LISTED = (
    "https://chat.example",
    "https://other.example:8443",
    "http://tools.example:*",
    "tauri://localhost",
    "app://notes.md",
)
QUESTION = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


@asynccontextmanager
async def serving(*origins: str) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    install_edge(app, key=KEY, allowed_hosts=(), max_body_bytes=10, allowed_origins=origins)

    @app.get("/health")
    async def health() -> Response:
        return Response("ok", headers={"X-Duet-Cache": "tokens=1", "X-Other": "1", "Vary": "Accept"})

    @app.get("/busy")
    async def busy() -> None:
        raise Busy("come back")

    @app.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://chat.example", True), ("HTTPS://Chat.Example", True), ("https://other.example:8443", True),
        ("http://tools.example", True), ("http://tools.example:1", True), ("http://tools.example:65535", True),
        ("tauri://localhost", True), ("app://notes.md", True),
        ("http://chat.example", False), ("https://chat.example:8443", False), ("https://chat.example.evil", False),
        ("https://evilchat.example", False), ("https://a.chat.example", False), ("https://other.example", False),
        ("https://tools.example:1", False), ("http://tools.example:1:2", False), ("http://tools.example:x", False),
        ("http://tools.example:*", False), ("http://tools.example:", False), ("http://tools.example:1.evil", False),
        ("null", False), ("", False), ("*", False), ("https://chat.example/", False), ("https://chat.example,https://x", False),
    ],
)  # fmt: skip
async def test_a_listed_origin_may_ask_and_no_other(origin: str, allowed: bool) -> None:
    async with serving(*LISTED) as client:
        asked = await client.options("/busy", headers={"Origin": origin, **QUESTION})
        plain = await client.get("/health", headers={"Origin": origin})
    assert asked.status_code == (204 if allowed else 403)
    for answer in (asked, plain):
        assert answer.headers.get("Access-Control-Allow-Origin") == (origin if allowed else None)
        assert "Origin" in answer.headers["Vary"]
        if not allowed:
            assert not any(name.startswith("access-control") for name in answer.headers)
    if not allowed:
        assert "allowed_origins" in asked.json()["error"]["message"]


async def test_a_browsers_question_is_answered_without_a_key() -> None:
    async with serving("https://chat.example") as client:
        for path in ("/busy", "/v1/chat/completions", "/nowhere"):
            answer = await client.options(path, headers={"Origin": "https://chat.example", **QUESTION})
            assert (answer.status_code, answer.content) == (204, b"")
            assert "POST" in answer.headers["Access-Control-Allow-Methods"]
            assert answer.headers["Access-Control-Allow-Headers"] == "authorization,content-type"
            assert answer.headers["Access-Control-Allow-Credentials"] == "true"
            assert int(answer.headers["Access-Control-Max-Age"]) > 0
            assert "Access-Control-Allow-Private-Network" not in answer.headers
            assert "Access-Control-Request-Headers" in answer.headers["Vary"]


async def test_a_page_on_a_public_address_may_reach_this_network() -> None:
    asks = {"Origin": "https://chat.example", **QUESTION, "Access-Control-Request-Private-Network": "true"}
    async with serving("https://chat.example") as client:
        answer = await client.options("/busy", headers=asks)
    assert answer.headers["Access-Control-Allow-Private-Network"] == "true"


async def test_only_a_browsers_question_passes_without_a_key() -> None:
    async with serving("https://chat.example") as client:
        for headers in ({}, {"Origin": "https://chat.example"}, QUESTION):
            assert (await client.options("/busy", headers=headers)).status_code == 401
        foreign = {"Host": "evil.example", "Origin": "https://chat.example", **QUESTION}
        assert (await client.options("/busy", headers=foreign)).status_code == 403


@pytest.mark.parametrize("names", ["a\r\nb", "a b", "a,,b", "ä", ",".join(["x"] * 100), "a;b"])
async def test_header_names_come_back_only_if_they_are_some(names: str) -> None:
    asks = {"Origin": "https://chat.example", **QUESTION, "Access-Control-Request-Headers": names}
    raw = [(name.encode(), value.encode()) for name, value in asks.items()]
    async with serving("https://chat.example") as client:
        assert "Access-Control-Allow-Headers" not in (await client.options("/busy", headers=raw)).headers


async def test_every_answer_of_any_kind_is_marked() -> None:
    asks = {"Origin": "https://chat.example"}
    async with serving("https://chat.example") as client:
        for path, headers, status in (
            ("/health", {}, 200), ("/busy", {}, 401), ("/busy", BEARER, 429), ("/broken", BEARER, 500),
            ("/nowhere", BEARER, 404), ("/health", {"Host": "evil.example"}, 403),
        ):  # fmt: skip
            answer = await client.get(path, headers={**asks, **headers})
            assert answer.status_code == status
            assert answer.headers["Access-Control-Allow-Origin"] == "https://chat.example"
            shown = answer.headers["Access-Control-Expose-Headers"].split(", ")
            assert "x-request-id" in shown
            assert ("retry-after" in shown) == (status == 429)
        large = await client.post("/health", content=b"x" * 11, headers={**asks, **BEARER})
        assert (large.status_code, large.headers["Access-Control-Allow-Origin"]) == (413, "https://chat.example")


async def test_our_headers_are_shown_and_others_are_not() -> None:
    async with serving("https://chat.example") as client:
        answer = await client.get("/health", headers={"Origin": "https://chat.example"})
        assert answer.headers["Access-Control-Expose-Headers"].split(", ") == ["x-duet-cache", "x-request-id"]
        assert answer.headers["Vary"] == "Accept, Origin"
        assert "Origin" in (await client.get("/health")).headers["Vary"]


async def test_any_page_at_all_never_gets_credentials() -> None:
    async with serving("*") as client:
        for origin in ("https://anything.example", "null", "http://localhost:3000"):
            answer = await client.get("/health", headers={"Origin": origin})
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert "Access-Control-Allow-Credentials" not in answer.headers
            assert (await client.options("/busy", headers={"Origin": origin, **QUESTION})).status_code == 204


async def test_by_default_pages_of_this_machine_may_call_and_no_others() -> None:
    async with serving(*LOCAL_ORIGINS) as client:
        for origin in ("http://localhost", "http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]:5173"):
            assert (await client.options("/x", headers={"Origin": origin, **QUESTION})).status_code == 204
        for origin in (
            "http://localhost.evil.example:3000",
            "https://evil.example",
            "null",
            "http://192.168.1.2",
            "file://",
        ):
            assert (await client.options("/x", headers={"Origin": origin, **QUESTION})).status_code == 403


@pytest.mark.parametrize(
    "wrong",
    [
        "chat.example", "https://chat.example/", "https://chat.example/app", "https://", "https://a b", "**", "https://*.example",
    ],
)  # fmt: skip
def test_an_origin_that_no_browser_sends_is_refused_at_start(wrong: str) -> None:
    with pytest.raises(SettingsError, match="allowed_origins"):
        load_settings({"DUET_ALLOWED_ORIGINS": wrong})


def test_origins_are_listed_in_the_environment_too() -> None:
    assert load_settings({}).allowed_origins == LOCAL_ORIGINS
    assert load_settings({"DUET_ALLOWED_ORIGINS": ""}).allowed_origins == ()
    found = load_settings(
        {"DUET_ALLOWED_ORIGINS": "https://a.example, tauri://localhost,http://b:*,*,null"}
    ).allowed_origins
    assert found == ("https://a.example", "tauri://localhost", "http://b:*", "*", "null")
