"""Priorities and deadlines at the edge, and batch work that waits for other workers' work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.engine_service import EngineService, chat_body, engine_service, model_folder


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[EngineService]:
    for name in ("talker", "other"):
        model_folder(tmp_path / "models", name)
    async with engine_service(tmp_path, tmp_path / "models") as service:
        yield service


async def said(engine: EngineService, text: str, headers: dict[str, str] | None = None, **fields: object) -> str:
    body = chat_body(text) | fields
    answer = await engine.client.post("/v1/chat/completions", json=body, headers=headers or {})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


async def test_priority_and_deadline_reach_the_worker(engine: EngineService) -> None:
    assert await said(engine, "how") == "priority=normal deadline=None!"
    headers = {"X-Duet-Priority": "Batch", "X-Duet-Deadline": "2.5"}
    assert await said(engine, "how", headers) == "priority=batch deadline=2.5!"
    assert await said(engine, "how", headers, priority="interactive") == "priority=interactive deadline=2.5!"


@pytest.mark.parametrize(
    ("headers", "fields", "param"),
    [
        ({"X-Duet-Priority": "urgent"}, {}, "X-Duet-Priority"),
        ({"X-Duet-Deadline": "soon"}, {}, "X-Duet-Deadline"),
        ({"X-Duet-Deadline": "0"}, {}, "X-Duet-Deadline"),
        ({"X-Duet-Deadline": "nan"}, {}, "X-Duet-Deadline"),
        ({"X-Duet-Deadline": "1e99"}, {}, "X-Duet-Deadline"),
        ({}, {"priority": 3}, "priority"),
        ({}, {"stop_on_repetition": "yes"}, "stop_on_repetition"),
    ],
)
async def test_what_is_wrong_is_named(
    engine: EngineService, headers: dict[str, str], fields: dict[str, object], param: str
) -> None:
    answer = await engine.client.post("/v1/chat/completions", json=chat_body("hello") | fields, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def held(engine: EngineService, model: str) -> bool:
    """As batch work sees it: a question at a higher priority would change the answer."""
    return "held=1" in await said(engine, "status", {"X-Duet-Priority": "batch"}, model=model)


async def test_batch_work_waits_while_another_model_works_for_somebody(engine: EngineService) -> None:
    assert not await held(engine, "other")
    busy = chat_body("nothing", stream=True)
    async with engine.client.stream("POST", "/v1/chat/completions", json=busy):
        async with asyncio.timeout(10):
            while not await held(engine, "other"):
                await asyncio.sleep(0.01)
        assert not await held(engine, "talker")  # its own worker knows the order itself
    async with asyncio.timeout(10):
        while await held(engine, "other"):
            await asyncio.sleep(0.01)


async def test_batch_work_holds_nobody(engine: EngineService) -> None:
    await said(engine, "warm", model="other")
    busy = chat_body("nothing", stream=True)
    async with engine.client.stream("POST", "/v1/chat/completions", json=busy, headers={"X-Duet-Priority": "batch"}):
        assert not await held(engine, "other")
