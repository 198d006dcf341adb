"""Memory between models, over real processes and HTTP: how refusals look, what processes take and leave, and what operators do.

Which models give way, and which wait, is tested without processes: `tests/unit/test_pool_memory.py`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from typer.testing import CliRunner

from duet.cli.main import app
from duet.cli.models import described
from duet.errors import Unavailable
from engine.pool.ledger import WORKER_BYTES
from engine.pressure import footprint_bytes
from engine.worker_config import WorkerConfig
from tests.contract.test_engine_pool import is_alive
from tests.fakes.engine_service import (
    KEY,
    WORKER,
    EngineService,
    FakeHub,
    FakeMachine,
    chat_body,
    engine_service,
    model_folder,
    starts,
)
from tests.folders import write_weights

GB = 10**9
MODEL_BYTES = WORKER_BYTES
"""What a fake model is charged: its weights are nothing, and KV is off."""
TWO = 2 * MODEL_BYTES + MODEL_BYTES // 2


@asynccontextmanager
async def engine_for(tmp_path: Path, *names: str, **options: Any) -> AsyncIterator[EngineService]:
    for name in names:
        model_folder(tmp_path / "models", name)
    given = {
        "kv_ram_bytes": 0, "memory_limit_bytes": TWO, "minimum_residency_seconds": 0.0, "memory_wait_seconds": 0.0, **options,
    }  # fmt: skip
    async with engine_service(tmp_path, tmp_path / "models", **given) as engine:
        yield engine


async def admin(engine: EngineService) -> dict[str, Any]:
    answer = await engine.client.get("/v1/admin/models")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


async def placement(engine: EngineService, model: str) -> dict[str, Any]:
    return next(item for item in (await admin(engine))["models"] if item["id"] == model)


async def loaded(engine: EngineService) -> set[str]:
    return {item["id"] for item in (await admin(engine))["models"] if item["state"] == "loaded"}


async def post(engine: EngineService, model: str, action: str, query: str = "") -> httpx.Response:
    return await engine.client.post(f"/v1/admin/models/{model}/{action}{query}")


@asynccontextmanager
async def busy(engine: EngineService, model: str) -> AsyncIterator[None]:
    """A stream of the model runs during this context."""
    body = chat_body("forever", model, stream=True)
    async with engine.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        yield


async def test_models_in_use_are_named_in_a_503_that_says_when_to_come_back(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "a", "b", "c") as engine, busy(engine, "a"), busy(engine, "b"):
        refused = await engine.chat("hello", "c")
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) > 0
        error = refused.json()["error"]
        assert error["code"] == "memory_full"
        assert "a (0.4 GB) has 1 request" in error["message"]
        assert "b (0.4 GB) has 1 request" in error["message"]
        assert await loaded(engine) == {"a", "b"}
        for _ in range(3):
            assert (await engine.chat("hello", "c")).json()["error"]["code"] == "memory_full", (
                "it does not rest for that"
            )


async def test_a_waiting_stream_says_what_it_waits_for(tmp_path: Path) -> None:
    async with (
        engine_for(tmp_path, "a", "b", "c", memory_wait_seconds=20.0) as engine,
        busy(engine, "a"),
        busy(engine, "b"),
    ):
        body = chat_body("hello", "c", stream=True)
        async with engine.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith(": loading c"):
                    assert "has 1 request" in line
                    break


async def test_a_model_that_never_fits_is_refused_at_once_and_unloads_nothing(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "a", memory_wait_seconds=60.0) as engine:
        folder = model_folder(tmp_path / "models", "giant")
        write_weights(folder / "model.safetensors", 2 * TWO)
        await engine.chat("hello", "a")
        started_at = time.monotonic()
        refused = await engine.chat("hello", "giant")
        assert refused.status_code == 507
        assert refused.json()["error"]["code"] == "model_too_large"
        assert "engine.memory_limit_bytes" in refused.json()["error"]["message"]
        assert "Retry-After" not in refused.headers
        assert time.monotonic() - started_at < 10
        assert await loaded(engine) == {"a"}
        assert starts(folder) == []


async def test_what_a_load_has_taken_is_known_to_be_ours(tmp_path: Path) -> None:
    """Else a load counts twice: it is reserved in full, and the memory that it has taken is missing from what is available."""
    folder = model_folder(tmp_path / "models", "slow", wait_for="go")
    async with engine_for(tmp_path) as engine:
        loading = asyncio.create_task(engine.chat("hello", "slow"))
        async with asyncio.timeout(10):
            while not starts(folder):
                await asyncio.sleep(0.02)
        (pid,) = starts(folder)
        status = await admin(engine)
        assert abs(status["held_bytes"] - footprint_bytes(pid)) < 16 << 20
        assert status["held_bytes"] > 16 << 20
        assert status["charged_bytes"] == (await placement(engine, "slow"))["estimate_bytes"]
        (folder / "go").touch()
        assert (await loading).status_code == 200
        assert (await admin(engine))["held_bytes"] > 16 << 20, "it has not reported yet"
        await post(engine, "slow", "unload")
        assert (await admin(engine))["held_bytes"] == 0


async def test_a_worker_hears_that_the_machine_is_short_of_memory(tmp_path: Path) -> None:
    machine = FakeMachine()
    async with engine_for(tmp_path, "a", machine=machine, idle_unload_seconds=0.4) as engine:
        await post(engine, "a", "pin")
        pid = (await engine.status("a"))["pid"]
        machine.reading = replace(machine.reading, pressure="warning")
        async with asyncio.timeout(10):
            while (await engine.status("a"))["freed"] == 0:
                await asyncio.sleep(0.05)
        assert is_alive(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
async def test_nothing_is_on_a_workers_command_line_but_its_channel(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """New or spare: what it is to be comes as its first message. The log says which process has which model."""
    caplog.set_level("INFO")
    async with engine_for(tmp_path, "a", "b", warm_spare=True) as engine:
        fresh = (await engine.status("a"))["pid"]
        await until_spare(engine)
        spares = processes_of(os.getpid())
        spare = (await engine.status("b"))["pid"]
        assert spare in spares - {fresh}
        for model in ("a", "b"):
            answer = (await engine.chat("told", model)).json()["choices"][0]["message"]["content"]
            assert msgspec.json.decode(answer.removesuffix("!"), type=WorkerConfig).model == model
        for pid in (fresh, spare):
            *_, module, option, fd, end = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            assert (module, option, fd.isdecimal(), end) == (WORKER, "--fd", True, "")
            before = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-4]
            assert before == [sys.executable, "-P", "-m"]
    told = [vars(record) for record in caplog.records if getattr(record, "action", "") == "worker_told"]
    assert [(one["model"], one["child_pid"]) for one in told] == [("a", fresh), ("b", spare)]


async def test_a_spare_process_becomes_the_worker_and_another_takes_its_place(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "a", warm_spare=True, idle_unload_seconds=0.4) as engine:
        await until_spare(engine)
        children = processes_of(os.getpid())
        pid = (await engine.status("a"))["pid"]
        assert pid in children
        await until_spare(engine)
        spares = processes_of(os.getpid()) - children
    for child in {pid, *spares}:
        assert not is_alive(child)


async def test_a_spare_that_was_killed_costs_nothing_but_the_time(tmp_path: Path) -> None:
    before = processes_of(os.getpid())
    async with engine_for(tmp_path, "a", warm_spare=True, idle_unload_seconds=4.0) as engine:
        await until_spare(engine)
        (spare,) = processes_of(os.getpid()) - before
        os.kill(spare, signal.SIGKILL)  # it may die before it is taken, before it is told its model, or after
        assert (await engine.chat("hello", "a")).status_code == 200


async def test_a_spare_that_is_killed_while_it_loads_is_no_crash_of_the_model(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "models", "slow", wait_for="go")
    async with engine_for(tmp_path, warm_spare=True, idle_unload_seconds=0.4) as engine:
        await until_spare(engine)
        asking = asyncio.create_task(engine.chat("hello", "slow"))
        await until_started(folder, times=1)
        os.kill(starts(folder)[0], signal.SIGKILL)
        await until_started(folder, times=2)
        (folder / "go").touch()
        assert (await asking).status_code == 200
        found = await placement(engine, "slow")
        assert (found["pid"], found["loads"], found["crashes"]) == (starts(folder)[1], 1, 0)
    assert not any(is_alive(pid) for pid in starts(folder))


async def test_a_model_that_ends_the_spare_ends_one_new_process_too_and_no_more(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "models", "crash", exit_code=3)
    async with engine_for(tmp_path, warm_spare=True, idle_unload_seconds=0.4) as engine:
        await until_spare(engine)
        answer = await engine.chat("hello", "crash")
        assert (answer.status_code, len(starts(folder))) == (503, 2)
        assert "exit code 3" in answer.json()["error"]["message"]
        assert (await placement(engine, "crash"))["crashes"] == 1


async def until_spare(engine: EngineService) -> None:
    async with asyncio.timeout(20):
        while not (await admin(engine))["spare"]:
            await asyncio.sleep(0.02)


async def until_started(folder: Path, *, times: int) -> None:
    async with asyncio.timeout(20):
        while len(starts(folder)) < times:
            await asyncio.sleep(0.02)


async def test_four_models_in_memory_for_two_give_clean_answers_only_and_leave_nothing(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d")
    before = open_handles()
    async with engine_for(tmp_path, *names, memory_wait_seconds=0.3) as engine:

        async def client(number: int) -> list[tuple[int, str | None]]:
            seen = []
            for turn in range(6):
                answer = await engine.chat(f"hello {turn}", names[(number * 7 + turn * 3) % 4])
                code = answer.json().get("error", {}).get("code")
                seen.append((answer.status_code, code))
                status = await admin(engine)
                assert status["charged_bytes"] <= TWO
                if answer.status_code == 503:
                    assert int(answer.headers["Retry-After"]) > 0
            return seen

        seen = [item for items in await asyncio.gather(*map(client, range(6))) for item in items]
        assert set(seen) <= {(200, None), (503, "memory_full")}
        assert (200, None) in seen
        for name in names:
            assert (await post(engine, name, "unload")).status_code == 200
        assert (await admin(engine))["charged_bytes"] == 0
    pids = {pid for name in names for pid in starts(tmp_path / "models" / name)}
    assert not any(is_alive(pid) for pid in pids)
    assert open_handles() <= before


def processes_of(parent: int) -> set[int]:
    """Children of a process, by /proc."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[1]) == parent:
            found.add(int(stat.parent.name))
    return found


def open_handles() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


# Operators ------------------------------------------------------------------------------------------------------------


async def test_operators_load_and_unload(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "a") as engine:
        answer = await post(engine, "a", "load")
        assert answer.status_code == 200
        found = answer.json()
        assert (found["id"], found["state"], found["loads"]) == ("a", "loaded", 1)
        pid = found["pid"]
        found = (await post(engine, "a", "unload")).json()
        assert (found["state"], found["pid"], found["unloads"]) == ("unloaded", None, {"asked": 1})
        assert not is_alive(pid)
        assert (await post(engine, "a", "unload")).status_code == 200, "it is what was asked for"


async def test_a_busy_model_is_a_409_unless_forced(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "a") as engine:
        body = chat_body("forever", "a", stream=True)
        async with engine.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            refused = await post(engine, "a", "unload")
            assert refused.status_code == 409
            assert "1 request" in refused.json()["error"]["message"]
            assert (await post(engine, "a", "unload", "?force=true")).json()["state"] == "unloaded"
            rest = (await answer.aread()).decode()
        assert '"code":"worker_lost"' in rest.splitlines()[-2]


async def test_a_load_that_is_stopped_by_force_is_a_503_for_who_waits(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "models", "slow", wait_for="never")
    async with engine_for(tmp_path) as engine:
        waiting = asyncio.create_task(engine.chat("hello", "slow"))
        async with asyncio.timeout(10):
            while not starts(folder):
                await asyncio.sleep(0.02)
        assert (await post(engine, "slow", "unload")).status_code == 409
        assert (await post(engine, "slow", "unload", "?force=true")).status_code == 200
        assert (await waiting).status_code == 503
        assert (await admin(engine))["charged_bytes"] == 0
    assert not any(is_alive(pid) for pid in starts(folder))


async def test_ids_with_slashes(tmp_path: Path) -> None:
    hub = FakeHub(tmp_path / "hub")
    hub.arrived.set()
    async with engine_for(tmp_path, "a", hub=hub) as engine:
        assert (await post(engine, "owner/far", "load")).json()["id"] == "owner/far"
        assert (await engine.client.get("/v1/admin/models/owner/far/stats")).json()["state"] == "loaded"
        assert (await post(engine, "owner/far", "unload")).json()["state"] == "unloaded"


async def test_stats_of_one_model_and_names_that_there_are_not(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "a") as engine:
        stats = await engine.client.get("/v1/admin/models/a/stats")
        assert stats.json()["state"] == "unloaded"
        assert (await engine.client.get("/v1/admin/models/nobody/stats")).status_code == 404
        for action in ("load", "unload", "pin", "unpin"):
            assert (await post(engine, "nobody/nothing", action)).status_code == 404


async def test_the_command_line_sees_and_does_the_same(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "a", "b") as engine:
        (tmp_path / "api_key").write_text(KEY)
        port = engine.url.rpartition(":")[2]
        places = {"DUET_HOME": str(tmp_path), "DUET_ENGINE__PORT": port, "DUET_ROUTER__PORT": "1"}

        async def duet(*arguments: str) -> tuple[int, str]:
            result = await asyncio.to_thread(CliRunner().invoke, app, [*arguments], env=places)
            return result.exit_code, result.output

        assert (await duet("models", "load", "a"))[0] == 0
        code, said = await duet("models", "pin", "a")
        assert (code, "pinned" in said, "loaded" in said) == (0, True, True)
        code, said = await duet("models", "list")
        assert code == 0
        assert "memory: 0.4 GB of 1.0 GB for models; preset 64gb" in said
        assert "unloaded     needs about 0.4 GB" in said
        _, said = await duet("status")
        assert "a" in said
        assert "0.4 GB charged  pinned" in said
        async with busy(engine, "a"):
            code, said = await duet("models", "unload", "a")
            assert (code, "force=true ends them" in said) == (1, True)
        assert (await duet("models", "unload", "a"))[0] == 0
        assert await loaded(engine) == set()
        code, said = await duet("models", "load", "nobody")
        assert (code, "there is no model 'nobody'" in said) == (1, True)


async def test_a_model_that_crashes_while_it_loads_is_seen_to_crash_and_to_rest(tmp_path: Path) -> None:
    model_folder(tmp_path / "models", "crash", exit_code=3)
    async with engine_for(tmp_path) as engine:
        assert (await placement(engine, "crash"))["rests_seconds"] == 0
        for _ in range(3):
            await engine.chat("hello", "crash")
        found = await placement(engine, "crash")
        assert found["crashes"] == 3
        assert 0 < found["rests_seconds"] <= 30
        assert "3 crashes  failed too often, rests " in described(found)


async def test_a_model_that_crashes_at_work_is_seen_to_rest(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "a") as engine:
        for _ in range(3):
            assert (await engine.chat("die", "a")).json()["error"]["code"] == "worker_lost"
        async with asyncio.timeout(10):
            while (found := await placement(engine, "a"))["crashes"] < 3:
                await asyncio.sleep(0.02)
        assert (found["state"], found["rests_seconds"] > 0) == ("unloaded", True)


async def test_a_hub_that_cannot_be_reached_lets_no_model_rest(tmp_path: Path) -> None:
    class Unreachable(FakeHub):
        async def fetch(self, repo: str, revision: str | None = None, *, on_progress: Any) -> Path:
            raise Unavailable(f"{repo}: the hub does not answer", param="model")

    async with engine_for(tmp_path, "a", hub=Unreachable(tmp_path / "hub")) as engine:
        for _ in range(5):
            message = (await engine.chat("hello", "owner/far")).json()["error"]["message"]
            assert "the hub does not answer" in message
        stats = await engine.client.get("/v1/admin/models/owner/far/stats")
        assert stats.json()["rests_seconds"] == 0


async def test_admin_needs_the_key(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "a") as engine, httpx.AsyncClient(trust_env=False) as stranger:
        for method, path in (("GET", ""), ("GET", "/a/stats"), ("POST", "/a/load"), ("POST", "/a/unload")):
            answer = await stranger.request(method, f"{engine.url}/v1/admin/models{path}")
            assert answer.status_code == 401
