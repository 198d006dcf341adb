"""What Prometheus and the log get of requests and of the pool: numbers, never text."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.api.operators.metrics import rows_of
from engine.types import BatchReport, KvDirectory, KvReport, KvStatus, Placement
from tests.fakes.engine_service import EngineService, chat_body, engine_service, leave, model_folder


@pytest.fixture
async def engine(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[EngineService]:
    """Its model is named for the test: counters live as long as the process."""
    models = tmp_path / "models"
    model_folder(models, "talker")
    model_folder(models, request.node.name[:60], memory_bytes=1_000_000)
    model_folder(models, f"{request.node.name[:50]}-embed", capabilities=["embedding"])
    async with engine_service(tmp_path, models) as service:
        yield service


async def samples(engine: EngineService, model: str) -> dict[str, float]:
    """Every sample of a model, as `name{other labels}`."""
    text = (await engine.client.get("/metrics")).text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            if model not in (labels.pop("model", None), labels.pop("model_name", None)):
                continue
            labels.pop("le", None) if sample.labels.get("le") != "+Inf" else None
            shown = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
            found[f"{sample.name}{{{shown}}}" if shown else sample.name] = sample.value
    return found


async def until_running(engine: EngineService, model: str, requests: int) -> None:
    async with asyncio.timeout(20):
        while (await samples(engine, model))["vllm:num_requests_running"] != requests:
            await asyncio.sleep(0.02)


async def test_a_finished_stream(
    engine: EngineService, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    model = request.node.name[:60]
    caplog.set_level(logging.INFO)
    headers = {"X-Request-Id": "mine-1"}
    body = chat_body("secret words", model, stream=True)
    answer = await engine.client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200
    found = await samples(engine, model)
    assert found["vllm:prompt_tokens_total"] == 7
    assert found["vllm:generation_tokens_total"] == 4
    assert found["vllm:time_to_first_token_seconds_count"] == 1
    assert found["vllm:inter_token_latency_seconds_count"] == 3
    assert found["vllm:e2e_request_latency_seconds_count"] == 1
    assert found["vllm:request_success_total{finished_reason=stop}"] == 1
    assert found["duet_requests_total{kind=generate,outcome=stop}"] == 1
    assert found["duet_cached_tokens_total{tier=ram}"] == 3
    record = next(record for record in caplog.records if getattr(record, "action", "") == "answered")
    said = vars(record)
    assert {name: said[name] for name in ("request_id", "model", "outcome", "prompt_tokens", "completion_tokens")} == {
        "request_id": "mine-1", "model": model, "outcome": "stop", "prompt_tokens": 7, "completion_tokens": 4,
    }  # fmt: skip
    assert said["cached_tokens"] == 3
    assert 0 <= said["first_token_milliseconds"] <= said["milliseconds"]
    assert "secret" not in caplog.text


async def test_every_request_is_counted_once_however_it_ends(
    engine: EngineService, request: pytest.FixtureRequest
) -> None:
    model = request.node.name[:60]
    await engine.chat("refuse", model)
    await engine.chat("break", model)
    await engine.chat("hello", model, max_tokens=1)
    asking = asyncio.create_task(engine.chat("nothing", model))
    await until_running(engine, model, 1)
    await leave(asking)
    await until_running(engine, model, 0)
    await engine.chat("die", model)
    async with asyncio.timeout(10):
        while True:
            found = await samples(engine, model)
            outcomes = {name: value for name, value in found.items() if name.startswith("duet_requests_total")}
            if sum(outcomes.values()) == 5:
                break
            await asyncio.sleep(0.02)
    ends = ("context_length_exceeded", "internal_error", "length", "abort", "worker_lost")
    assert outcomes == {f"duet_requests_total{{kind=generate,outcome={end}}}": 1 for end in ends}
    assert found["vllm:request_success_total{finished_reason=abort}"] == 1
    assert found["duet_worker_crashes_total"] == 1


async def test_hidden_thoughts_count_as_generated_and_not_as_tokens_that_came(
    engine: EngineService, request: pytest.FixtureRequest
) -> None:
    model = request.node.name[:60]
    await engine.chat("think", model)
    found = await samples(engine, model)
    assert found["vllm:generation_tokens_total"] == 3 + 2
    assert found["vllm:time_to_first_token_seconds_count"] == 1
    assert found["vllm:inter_token_latency_seconds_count"] == 1
    asking = asyncio.create_task(engine.chat("ponder", model))
    await until_running(engine, model, 1)
    await leave(asking)
    await until_running(engine, model, 0)
    async with asyncio.timeout(10):
        while "vllm:request_success_total{finished_reason=abort}" not in (left := await samples(engine, model)):
            await asyncio.sleep(0.02)
    for name in ("vllm:generation_tokens_total", "vllm:time_to_first_token_seconds_count"):
        assert left[name] == found[name], "of an answer that was not complete, only what came is counted"


async def test_embeddings_are_requests_too(engine: EngineService, request: pytest.FixtureRequest) -> None:
    model = f"{request.node.name[:50]}-embed"
    answer = await engine.client.post("/v1/embeddings", json={"model": model, "input": "x"})
    assert answer.status_code == 200
    assert (await samples(engine, model))["duet_requests_total{kind=embed,outcome=ok}"] == 1


async def test_the_pool_shows_memory_states_loads_and_queue(
    engine: EngineService, request: pytest.FixtureRequest
) -> None:
    model = request.node.name[:60]
    body = chat_body("forever", model, stream=True)
    async with engine.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.aiter_lines()  # an iterator that nobody holds is closed, and the answer with it
        while "token" not in await anext(lines):
            pass
        found = await samples(engine, model)
        assert (found["vllm:num_requests_running"], found["vllm:num_requests_waiting"]) == (1, 0)
        assert found["duet_model_memory_bytes{kind=held}"] == 1_000_000
        assert found["duet_model_memory_bytes{kind=estimate}"] > 0
        assert found["duet_model_state{state=loaded}"] == 1
        assert found["duet_model_state{state=unloaded}"] == 0
    await engine.client.post(f"/v1/admin/models/{model}/unload?force=true")
    found = await samples(engine, model)
    assert found["duet_model_loads_total"] == 1
    assert found["duet_model_unloads_total{reason=asked}"] == 1
    assert found["duet_model_memory_bytes{kind=charged}"] == 0
    text = (await engine.client.get("/metrics")).text
    for name in (
        "duet_memory_limit_bytes",
        "duet_memory_available_bytes",
        "duet_memory_pressure",
        "duet_memory_refused",
    ):
        assert f"\n{name}" in text


@pytest.mark.parametrize(
    ("running", "batch", "expected"),
    [
        (3, None, 3),  # no batch: it works on all
        (1, BatchReport(0, 0), 1),  # has come since the report
        (9, BatchReport(4, 5), 4),
        (10, BatchReport(4, 5), 5),  # one has come since
        (3, BatchReport(4, 5), 3),  # six have ended since
        (0, BatchReport(4, 5), 0),
        (2, BatchReport(1, 1), 1),
    ],
)
def test_running_is_what_has_a_row(running: int, batch: BatchReport | None, expected: int) -> None:
    placement = Placement(
        id="m", state="loaded", pinned=False, resident=False, estimate_bytes=1, charged_bytes=1, memory_bytes=None,
        memory=None, ttl_seconds=None, idle_seconds=None, loaded_seconds=None, running=running, waiting=2, batch=batch,
        loads=1, crashes=0, rests_seconds=0.0, unloads={}, pid=None,
    )  # fmt: skip
    assert rows_of(placement) == expected


async def test_what_was_written_today_stays_when_a_model_is_unloaded(
    engine: EngineService, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = request.node.name[:60]
    workers = {model: KvReport(written_today=600)}

    async def kv() -> KvStatus:
        owned = bool(workers)
        found = (KvDirectory("d", model, owned, 1, 1, 600), KvDirectory("older", model, False, 1, 1, 50))
        return KvStatus(0, 0, found, dict(workers))

    monkeypatch.setattr(engine.pool, "kv", kv)
    assert (await samples(engine, model))["duet_kv_written_today"] == 650
    workers.clear()
    assert (await samples(engine, model))["duet_kv_written_today"] == 650
