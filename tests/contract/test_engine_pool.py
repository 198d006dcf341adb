"""Gateway and worker processes: loading, dying, unloading, leaving."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from duet.supervise.child import Child
from tests.fakes.engine_service import (
    KEY,
    EngineService,
    FakeHub,
    chat_body,
    engine_service,
    leave,
    model_folder,
    starts,
)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    model_folder(root, "talker")
    return root


@pytest.fixture
async def engine(tmp_path: Path, models: Path) -> AsyncIterator[EngineService]:
    async with engine_service(tmp_path, models) as service:
        yield service


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until_dead(pid: int, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while is_alive(pid):
            await asyncio.sleep(0.01)


async def until_idle(engine: EngineService, cancelled: int) -> None:
    """The worker has nothing live and has counted the cancels."""
    async with asyncio.timeout(20):
        while True:
            status = await engine.status()
            if (status["live"], status["cancelled"]) == (0, cancelled):
                return
            await asyncio.sleep(0.01)


async def state(engine: EngineService, model: str = "talker") -> str:
    return str((await engine.client.get(f"/v1/models/{model}")).json()["duet"]["state"])


async def placement(engine: EngineService, model: str) -> dict[str, Any]:
    found: dict[str, Any] = (await engine.client.get(f"/v1/admin/models/{model}/stats")).json()
    return found


async def test_nothing_is_loaded_before_the_first_request(engine: EngineService, models: Path) -> None:
    assert await state(engine) == "unloaded"
    assert starts(models / "talker") == []


async def test_concurrent_first_requests_load_once(engine: EngineService, models: Path) -> None:
    answers = await asyncio.gather(*(engine.chat(f"hello {i}") for i in range(8)))
    assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == [
        f"hello {i}!" for i in range(8)
    ]
    assert len(starts(models / "talker")) == 1
    assert await state(engine) == "loaded"


async def test_a_killed_worker_ends_its_stream_with_an_error_and_the_next_request_works(
    engine: EngineService, models: Path
) -> None:
    model_folder(models, "other")
    before = await engine.status("other")
    async with engine.client.stream("POST", "/v1/chat/completions", json=chat_body("forever", stream=True)) as answer:
        assert answer.status_code == 200
        lines = answer.aiter_lines()
        async for line in lines:
            if "token" in line:
                break
        os.kill(starts(models / "talker")[0], signal.SIGKILL)
        rest = [line async for line in lines if line]
    assert '"code":"worker_lost"' in rest[-1]
    assert "[DONE]" not in "".join(rest)
    assert (await engine.chat("again")).json()["choices"][0]["message"]["content"] == "again!"
    assert len(starts(models / "talker")) == 2
    assert (await engine.status("other"))["pid"] == before["pid"], "another model's worker is untouched"


async def test_a_worker_that_dies_under_an_unstreamed_request_is_a_503(engine: EngineService) -> None:
    answer = await engine.chat("die")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "worker_lost"
    assert (await engine.chat("again")).status_code == 200


async def test_a_client_that_leaves_a_stream_cancels_it_in_the_worker(engine: EngineService) -> None:
    async with engine.client.stream("POST", "/v1/chat/completions", json=chat_body("forever", stream=True)) as answer:
        async for line in answer.aiter_lines():
            if "token" in line:
                break
    await until_idle(engine, cancelled=1)


async def test_a_client_that_leaves_an_unstreamed_request_cancels_it_in_the_worker(engine: EngineService) -> None:
    asking = asyncio.create_task(engine.chat("nothing", n=3))
    async with asyncio.timeout(30):
        while (await engine.status())["live"] < 3:
            await asyncio.sleep(0.01)
    await leave(asking)
    await until_idle(engine, cancelled=3)


async def test_a_client_that_leaves_a_silent_stream_cancels_it(engine: EngineService) -> None:
    async with engine.client.stream("POST", "/v1/chat/completions", json=chat_body("nothing", stream=True)) as answer:
        assert answer.status_code == 200
    await until_idle(engine, cancelled=1)


async def test_a_slow_reader_is_stopped_instead_of_filling_memory(engine: EngineService) -> None:
    await engine.chat("warm")
    async with engine.client.stream("POST", "/v1/chat/completions", json=chat_body("fast", stream=True)) as answer:
        async with asyncio.timeout(60):
            while (await engine.status())["cancelled"] == 0:
                await asyncio.sleep(0.1)
        text = (await answer.aread()).decode()
    assert '"code":"server_busy"' in text[-2000:]


async def test_an_idle_worker_is_unloaded_by_ending_its_process(tmp_path: Path, models: Path) -> None:
    async with engine_service(tmp_path, models, idle_unload_seconds=0.2) as engine:
        pid = (await engine.status())["pid"]
        await until_dead(pid)
        assert await state(engine) == "unloaded"
        assert (await engine.status())["pid"] != pid


async def test_a_busy_worker_is_not_unloaded(tmp_path: Path, models: Path) -> None:
    async with (
        engine_service(tmp_path, models, idle_unload_seconds=0.1) as engine,
        engine.client.stream("POST", "/v1/chat/completions", json=chat_body("forever", stream=True)) as answer,
    ):
        tokens = 0
        async for line in answer.aiter_lines():
            tokens += "token" in line
            if tokens == 100:
                break
        assert len(starts(models / "talker")) == 1


async def test_closing_the_pool_leaves_no_process(tmp_path: Path, models: Path) -> None:
    async with engine_service(tmp_path, models) as engine:
        pid = (await engine.status())["pid"]
    assert not is_alive(pid)


async def test_a_stopping_engine_tells_the_requests_that_it_ends(tmp_path: Path, models: Path) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(headers=headers, timeout=30, trust_env=False) as outside:
        async with engine_service(tmp_path, models) as engine:
            url = f"{engine.url}/v1/chat/completions"
            whole = asyncio.create_task(outside.post(url, json=chat_body("nothing")))
            streamed = await outside.send(
                outside.build_request("POST", url, json=chat_body("nothing", stream=True)), stream=True
            )
            async with asyncio.timeout(30):
                while (await engine.status())["live"] < 2:
                    await asyncio.sleep(0.01)
        rest = (await streamed.aread()).decode()
        assert '"code":"unavailable"' in rest.splitlines()[-2]
        assert (await whole).status_code == 503


async def test_a_load_outlives_the_client_that_asked_for_it(tmp_path: Path, models: Path) -> None:
    folder = model_folder(models, "slow", wait_for="go")
    async with engine_service(tmp_path, models) as engine:
        asking = asyncio.create_task(engine.chat("hello", "slow"))
        async with asyncio.timeout(30):
            while not starts(folder):
                await asyncio.sleep(0.01)
            await leave(asking)
            while (await placement(engine, "slow"))["waiting"]:
                await asyncio.sleep(0.01)
        assert await state(engine, "slow") == "loading"
        (folder / "go").touch()
        assert (await engine.chat("hello", "slow")).status_code == 200
    assert len(starts(folder)) == 1


async def test_a_stream_is_kept_alive_with_the_progress_while_a_model_loads(tmp_path: Path, models: Path) -> None:
    folder = model_folder(models, "slow", wait_for="go")
    async with engine_service(tmp_path, models) as engine:
        body = chat_body("hello", "slow", stream=True)
        async with engine.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            lines = answer.aiter_lines()
            async for line in lines:
                if line.startswith(": loading slow"):
                    break
            (folder / "go").touch()
            rest = [line async for line in lines if line.startswith("data:")]
    assert rest[-1] == "data: [DONE]"


async def test_what_the_loader_says_reaches_the_client_and_a_failing_model_rests(tmp_path: Path, models: Path) -> None:
    folder = model_folder(models, "bad", load_error="model.safetensors is cut short; download it again")
    async with engine_service(tmp_path, models) as engine:
        for _ in range(3):
            answer = await engine.chat("hello", "bad")
            assert answer.status_code == 503
            assert "is cut short; download it again" in answer.json()["error"]["message"]
            assert int(answer.headers["Retry-After"]) == answer.json()["error"]["retry_after"] > 0
        rested = await engine.chat("hello", "bad")
        assert rested.status_code == 503
        assert int(rested.headers["Retry-After"]) > 0
        assert len(starts(folder)) == 3
        assert await state(engine, "bad") == "failed"
        assert (await engine.chat("hello")).status_code == 200


async def test_a_worker_that_ends_while_it_loads_is_a_503_with_its_exit_code(tmp_path: Path, models: Path) -> None:
    model_folder(models, "crash", exit_code=3)
    async with engine_service(tmp_path, models) as engine:
        answer = await engine.chat("hello", "crash")
    assert answer.status_code == 503
    assert "exit code 3" in answer.json()["error"]["message"]


async def test_a_load_that_takes_too_long_is_given_up(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, children = Child.start, list[Child[Any]]()

    async def start_noted(*arguments: Any, **options: Any) -> Child[Any]:
        children.append(await start(*arguments, **options))
        return children[-1]

    monkeypatch.setattr(Child, "start", start_noted)
    model_folder(models, "stuck", wait_for="never")
    async with engine_service(tmp_path, models, load_timeout_seconds=3.0) as engine:
        answer = await engine.chat("hello", "stuck")
        assert [child.returncode for child in children] == [-signal.SIGKILL]
    assert answer.status_code == 503
    assert "did not load in 3 s" in answer.json()["error"]["message"]


async def test_more_requests_than_may_wait_are_told_when_to_come_back(tmp_path: Path, models: Path) -> None:
    async with engine_service(tmp_path, models, max_waiting_requests=1) as engine:
        body = chat_body("forever", stream=True)
        async with engine.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            refused = await engine.chat("hello")
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "server_busy"
            assert int(refused.headers["Retry-After"]) > 0
        await until_idle(engine, cancelled=1)


async def test_a_new_folder_is_a_model_without_a_restart(engine: EngineService, models: Path) -> None:
    assert (await engine.chat("hello", "fresh")).status_code == 404
    model_folder(models, "fresh")
    assert (await engine.chat("hello", "fresh")).status_code == 200


async def test_a_repo_is_fetched_when_first_asked_for_and_the_stream_says_how_far_it_is(
    tmp_path: Path, models: Path
) -> None:
    hub = FakeHub(tmp_path / "hub")
    async with engine_service(tmp_path, models, hub=hub) as engine:
        body = chat_body("hello", "owner/far", stream=True)
        async with engine.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.aiter_lines()
            async for line in lines:
                if line.startswith(": downloading owner/far: 30%"):
                    break
            assert await state(engine, "owner/far") == "downloading"
            hub.arrived.set()
            rest = [line async for line in lines if line.startswith("data:")]
        assert rest[-1] == "data: [DONE]"
        assert (await engine.chat("hello", "owner/far")).json()["model"] == "owner/far"
        assert len(starts(tmp_path / "hub" / "far")) == 1
        assert await state(engine, "owner/far") == "loaded"


async def test_a_repo_that_the_hub_does_not_have_is_a_404_however_often_asked(tmp_path: Path, models: Path) -> None:
    async with engine_service(tmp_path, models, hub=FakeHub(tmp_path / "hub")) as engine:
        answers = [await engine.chat("hello", "nobody/nothing") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [404] * 5
    assert answers[-1].json()["error"]["param"] == "model"


ORPHAN_MAKER = """
import asyncio, sys
from pathlib import Path
from tests.fakes.engine_service import engine_service
async def main():
    async with engine_service(Path(sys.argv[1]), Path(sys.argv[2])) as engine:
        print((await engine.status())["pid"], flush=True)
        await asyncio.sleep(300)
asyncio.run(main())
"""


async def test_a_worker_ends_when_the_gateway_is_killed(tmp_path: Path, models: Path) -> None:
    command = [sys.executable, "-c", ORPHAN_MAKER, str(tmp_path), str(models)]
    gateway = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert gateway.stdout is not None
    worker = int(await asyncio.wait_for(gateway.stdout.readline(), 90))
    assert is_alive(worker)
    gateway.kill()
    await gateway.wait()
    await until_dead(worker)


async def test_names_that_are_thought_up_leave_nothing_behind(tmp_path: Path, models: Path) -> None:
    """Whatever is done with them: no place in the pool, no label in the metrics."""
    async with engine_service(tmp_path, models, hub=FakeHub(tmp_path / "hub")) as engine:
        for number in range(20):
            name = f"thought-up/name-{number}"
            admin = f"/v1/admin/models/{name}"
            assert (await engine.chat("hello", name)).status_code == 404
            assert (await engine.chat("hello", name, stream=True)).status_code == 404
            assert (await engine.client.post(f"{admin}/load")).status_code == 404
            for action in ("unload", "pin", "unpin"):
                assert (await engine.client.post(f"{admin}/{action}")).status_code == 200
            answer = await engine.client.post("/v1/embeddings", json={"model": f"{name}-embed", "input": "x"})
            assert answer.status_code == 404
        assert engine.pool._residency.slots == {}
        metrics = (await engine.client.get("/metrics")).text
        assert "thought-up" not in metrics
        assert 'duet_requests_total{kind="embed",model="unknown",outcome="model_not_found"}' in metrics
        assert (await engine.chat("hello")).status_code == 200
        assert engine.pool._residency.slots.keys() == {"talker"}


async def test_a_worker_that_lives_and_never_answers_is_ended_and_counts_as_a_crash(
    tmp_path: Path, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model_folder(models, "other")
    async with engine_service(tmp_path, models, worker_silence_seconds=3.0) as engine:
        body = chat_body("nothing", "other", stream=True)
        async with engine.client.stream("POST", "/v1/chat/completions", json=body) as quiet:
            assert quiet.status_code == 200, "a request that brings no token, and a loop that goes round"
            pid = (await engine.status())["pid"]
            answer = await engine.chat("hang")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "worker_lost")
            assert "said nothing for 3 s" in answer.json()["error"]["message"]
            await until_dead(pid)
            assert (await engine.status("other"))["live"] == 1
        stats = (await engine.client.get("/v1/admin/models/talker/stats")).json()
        assert stats["crashes"] == 1
        assert (await engine.status())["pid"] != pid
    assert [record.getMessage() for record in caplog.records if getattr(record, "action", "") == "worker_silent"] == [
        "worker:talker said nothing for 3 s: killed"
    ]


async def test_a_request_that_is_too_large_for_a_worker_is_a_413_and_harms_nobody(
    engine: EngineService, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = (await engine.status())["pid"]
    monkeypatch.setattr("duet.channel.MAX_FRAME_BYTES", 10_000)
    answer = await engine.chat("x" * 10_000)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")
    assert "which takes 10000" in answer.json()["error"]["message"]
    assert await engine.status() == {"live": 0, "cancelled": 0, "pid": pid, "freed": 0, "paused": 0}
