"""Priorities and deadlines at the edge, and batch work that waits for other workers' work."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.engine_service import EngineService, chat_body, engine_service, model_folder
from tests.sounds import pcm, tone, wav


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
    assert await said(engine, "how") == "priority=normal left=None!"
    headers = {"X-Duet-Priority": "Batch", "X-Duet-Deadline": "20.99"}
    for fields, expected in (({}, "batch"), ({"priority": "interactive"}, "interactive")):
        found = re.fullmatch(r"priority=(\w+) left=(\d+)!", await said(engine, "how", headers, **fields))
        assert found is not None
        assert found[1] == expected
        assert 10 < int(found[2]) <= 20


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


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A model that never finishes loading."""
    return model_folder(tmp_path / "models", "slow", wait_for="never")


def left(engine: EngineService) -> int:
    return sum(model.running + model.waiting for model in engine.pool.pool().models)


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("kind", ["chat", "embeddings", "transcriptions"])
async def test_a_deadline_ends_the_wait_for_a_load(engine: EngineService, kind: str) -> None:
    headers = {"X-Duet-Deadline": "0.3"}
    async with asyncio.timeout(10):
        match kind:
            case "chat":
                body = chat_body("hello", "slow")
                answer = await engine.client.post("/v1/chat/completions", json=body, headers=headers)
            case "embeddings":
                body = {"model": "slow", "input": "x"}
                answer = await engine.client.post("/v1/embeddings", json=body, headers=headers)
            case _:
                clip = {"file": ("clip.wav", wav(pcm(tone(0.1))))}
                data = {"model": "slow"}
                answer = await engine.client.post("/v1/audio/transcriptions", data=data, files=clip, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert left(engine) == 0


@pytest.mark.usefixtures("slow")
async def test_a_stream_that_has_begun_says_that_its_deadline_has_passed(
    engine: EngineService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.api.respond.PROMISE_AFTER_SECONDS", 0.0)
    monkeypatch.setattr("engine.api.shared.sse.KEEP_ALIVE_SECONDS", 0.05)
    body = chat_body("hello", "slow", stream=True)
    answer = await engine.client.post("/v1/chat/completions", json=body, headers={"X-Duet-Deadline": "2"})
    assert answer.status_code == 200
    (said,) = [line for line in answer.text.splitlines() if '"error"' in line]
    assert '"deadline_exceeded"' in said


async def test_a_deadline_ends_an_answer_that_says_nothing(engine: EngineService) -> None:
    await said(engine, "warm")
    body, headers = chat_body("nothing"), {"X-Duet-Deadline": "2"}
    answer = await engine.client.post("/v1/chat/completions", json=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert (await engine.status())["cancelled"] == 1


async def held(engine: EngineService, model: str) -> bool:
    """As batch work sees it: a question at a higher priority would change the answer."""
    return "paused=1" in await said(engine, "status", {"X-Duet-Priority": "batch"}, model=model)


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
