"""A meeting asks its reviewer for JSON of a given form, and does without where an engine cannot do that."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from starlette.responses import JSONResponse, Response

from duet.errors import DuetError
from duet.settings import RouterSettings, Settings
from pipelines.clients import Engine, EngineUnavailable
from tests.fakes.engine_http import FakeEngine, failure, fake_engine, said

SCHEMA = {"type": "object"}
ASKED = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest_asyncio.fixture
async def fake() -> AsyncIterator[FakeEngine]:
    async with fake_engine() as engine:
        yield engine


@pytest_asyncio.fixture
async def engine(fake: FakeEngine, tmp_path: Path) -> AsyncIterator[Engine]:
    async with Engine(Settings(home=tmp_path, router=RouterSettings(engine_url=fake.url)), timeout_seconds=5) as client:
        yield client


async def chat(engine: Engine, schema: dict[str, Any] | None = SCHEMA) -> str:
    return await engine.chat("m", MESSAGES, max_tokens=9, schema=schema)


def forms(fake: FakeEngine) -> list[Any]:
    """What each request asked its answer's form to be."""
    return [body.get("response_format") for body in fake.chats]


async def test_an_engine_that_follows_schemas_is_asked_with_them(fake: FakeEngine, engine: Engine) -> None:
    fake.answers = [said("one"), said("two"), said("three")]
    assert [await chat(engine), await chat(engine), await chat(engine, None)] == ["one", "two", "three"]
    assert forms(fake) == [ASKED, ASKED, None]


@pytest.mark.parametrize(
    "refusal",
    [
        failure(400, "no schemas here", param="response_format"),
        failure(400, "no schemas here", param="response_format.type"),
        failure(400, "what is this?"),
        failure(422, "what is this?"),
        JSONResponse({"detail": "unknown field"}, 422),
        Response("Bad Request", 400),
    ],
)
async def test_an_engine_that_does_not_is_asked_without_from_then_on(
    fake: FakeEngine, engine: Engine, refusal: Response
) -> None:
    fake.answers = [refusal, said("one"), said("two")]
    assert [await chat(engine), await chat(engine)] == ["one", "two"]
    assert forms(fake) == [ASKED, None, None]


async def test_what_is_refused_for_another_reason_is_not_asked_again(fake: FakeEngine, engine: Engine) -> None:
    fake.answers = [failure(400, "too long", param="messages"), said("one")]
    with pytest.raises(DuetError) as caught:
        await chat(engine)
    assert "too long" in caught.value.message
    assert await chat(engine) == "one"
    assert forms(fake) == [ASKED, ASKED]


async def test_an_engine_that_refuses_either_way_keeps_its_schemas(fake: FakeEngine, engine: Engine) -> None:
    fake.answers = [failure(400, "no"), failure(400, "no"), said("one")]
    with pytest.raises(DuetError):
        await chat(engine)
    assert await chat(engine) == "one"
    assert forms(fake) == [ASKED, None, ASKED]


@pytest.mark.parametrize("status", [404, 429, 500, 503])
async def test_an_engine_that_fails_is_not_asked_again(fake: FakeEngine, engine: Engine, status: int) -> None:
    fake.answers = [failure(status, "no")]
    with pytest.raises(EngineUnavailable):
        await chat(engine)
    assert forms(fake) == [ASKED]
