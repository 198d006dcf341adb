"""The one HTTP client of our own services, over real HTTP: what it sends, and what it makes of every kind of refusal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from duet.client import Client, Refused, Unreachable, offered_name, sync_client
from duet.errors import Unavailable, first_error
from tests.fakes.engine_http import served

NOWHERE = "http://127.0.0.1:9"
"""The discard port: nobody listens there."""


@pytest.fixture
def answers() -> list[Response]:
    """Taken in order; without one the request's own headers are the answer."""
    return []


@pytest.fixture
async def url(answers: list[Response]) -> AsyncIterator[str]:
    async def answer(request: Request) -> Response:
        return answers.pop(0) if answers else JSONResponse(dict(request.headers))

    async with served(Starlette(routes=[Route("/asked", answer)]), lifespan="off") as found:
        yield found


@pytest.fixture
async def client(url: str) -> AsyncIterator[Client]:
    found = Client(url, "secret", timeout_seconds=30)
    yield found
    await found.close()


async def test_the_key_goes_with_every_request_and_the_priority_where_there_is_one(client: Client, url: str) -> None:
    sent = (await client.request("GET", "/asked")).json()
    assert sent["authorization"] == "Bearer secret"
    assert "x-duet-priority" not in sent
    batch = Client(url, "secret", timeout_seconds=30, priority="batch")
    assert (await batch.request("GET", "/asked")).json()["x-duet-priority"] == "batch"
    await batch.close()


@pytest.mark.parametrize(
    ("body", "said", "param"),
    [
        ({"error": {"message": "too long", "param": "file", "code": "x"}}, "too long", "file"),
        ({"error": {"message": "too long"}}, "too long", None),
        ({"error": {"code": "x"}}, None, None),
        ({"error": "too long"}, None, None),
        ({"error": ["too long"]}, None, None),
        ({"detail": "too long"}, None, None),
        (["error"], None, None),
        (None, None, None),
    ],
)
async def test_a_refusal_tells_what_the_envelope_says(
    client: Client, answers: list[Response], body: object, said: str | None, param: str | None
) -> None:
    answers.append(JSONResponse(body, 413))
    with pytest.raises(Refused) as caught:
        await client.request("GET", "/asked")
    assert (caught.value.answered, caught.value.said, caught.value.param) == (413, said, param)
    assert caught.value.message == (said or "status 413")


async def test_a_page_of_another_program_is_a_refusal_without_words(client: Client, answers: list[Response]) -> None:
    answers.append(HTMLResponse("<h1>not here</h1>", 404))
    with pytest.raises(Refused, match="status 404"):
        await client.request("GET", "/asked")


async def test_where_nobody_listens_the_address_and_the_cause_are_told() -> None:
    client = Client(NOWHERE, "secret", timeout_seconds=5)
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9 is out of reach \(ConnectError\)") as caught:
        await client.request("GET", "/asked")
    assert isinstance(caught.value, Unavailable)
    assert caught.value.cause == "ConnectError"
    await client.close()


@pytest.mark.parametrize(
    ("name", "offered"), [("job-summary.md", "job-summary.md"), ("会议.md", "会议.md"), ("../../.ssh/config", "config")]
)
async def test_the_name_of_a_download_is_the_one_offered_without_a_folder(
    client: Client, answers: list[Response], tmp_path: Path, name: str, offered: str
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    answers.append(FileResponse(tmp_path / "file", filename=name))
    assert offered_name(await client.request("GET", "/asked")) == offered
    assert offered_name(await client.request("GET", "/asked")) == ""


def test_the_synchronous_client_sends_the_key_if_there_is_one() -> None:
    with sync_client("secret", timeout=1.0) as known, sync_client(None, timeout=1.0) as stranger:
        assert known.headers["authorization"] == "Bearer secret"
        assert "authorization" not in stranger.headers


def test_the_first_error_of_nested_groups_is_the_one_that_ended_them() -> None:
    cause = ValueError("first")
    assert first_error(BaseExceptionGroup("", [ExceptionGroup("", [cause, KeyError()]), OSError()])) is cause
