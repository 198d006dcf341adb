"""Memory between models: who gives way to whom, who waits, who is refused, and what operators can do about it."""

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
from duet.supervise.child import Child
from engine.pool import residents
from engine.pool.ledger import WORKER_BYTES
from engine.pressure import Reading, footprint_bytes
from engine.worker_config import WorkerConfig
from tests.contract.test_engine_pool import is_alive, until_dead
from tests.fakes.engine_service import (
    KEY,
    WORKER,
    EngineService,
    FakeHub,
    FakeMachine,
    chat_body,
    engine_service,
    leave,
    model_folder,
    starts,
)

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
    """A stream of the model runs meanwhile."""
    body = chat_body("forever", model, stream=True)
    async with engine.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        yield


async def test_the_longest_unused_model_makes_room_for_a_third(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "a", "b", "c") as engine:
        first = (await engine.status("a"))["pid"]
        await engine.chat("hello", "b")
        assert (await engine.chat("hello", "c")).status_code == 200
        assert await loaded(engine) == {"b", "c"}
        assert not is_alive(first)
        assert (await placement(engine, "a"))["unloads"] == {"evicted": 1}


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


async def test_a_request_waits_for_a_busy_model_to_become_idle(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "a", "b", "c", memory_wait_seconds=20.0) as engine:
        async with busy(engine, "a"), busy(engine, "b"):
            waiting = asyncio.create_task(engine.chat("hello", "c"))
            async with asyncio.timeout(10):
                while (await admin(engine))["waiting_for_memory"] == 0:
                    await asyncio.sleep(0.02)
        assert (await waiting).status_code == 200


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


async def test_nothing_is_unloaded_for_a_client_that_has_left(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "a", "b", "c", memory_wait_seconds=60.0) as engine, busy(engine, "a"):
        async with busy(engine, "b"):
            asking = asyncio.create_task(engine.chat("hello", "c"))
            async with asyncio.timeout(20):
                while (await admin(engine))["waiting_for_memory"] != 1:
                    await asyncio.sleep(0.02)
                await leave(asking)
                while (await admin(engine))["waiting_for_memory"]:
                    await asyncio.sleep(0.02)
        assert await loaded(engine) == {"a", "b"}
        assert starts(tmp_path / "models" / "c") == []


async def test_a_model_that_was_just_loaded_stays_for_its_minimum(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "a", "b", "c", minimum_residency_seconds=60.0) as engine:
        await engine.chat("hello", "a")
        await engine.chat("hello", "b")
        refused = await engine.chat("hello", "c")
        assert refused.status_code == 503
        assert "was loaded just now" in refused.json()["error"]["message"]


async def test_a_pinned_model_stays_until_it_is_unpinned(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "a", "b", "c", idle_unload_seconds=0.2, memory_limit_bytes=TWO) as engine:
        assert (await post(engine, "a", "pin")).json()["pinned"]
        pid = (await engine.status("a"))["pid"]
        await engine.chat("hello", "b")
        async with asyncio.timeout(10):
            while await loaded(engine) != {"a"}:  # b's TTL passes, a's does not count
                await asyncio.sleep(0.05)
        assert is_alive(pid)
        assert not (await post(engine, "a", "unpin")).json()["pinned"]
        await until_dead(pid)


async def test_pinned_models_are_a_503_that_names_them(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "a", "b", "c") as engine:
        for model in ("a", "b"):
            await post(engine, model, "pin")
            await post(engine, model, "load")
        message = (await engine.chat("hello", "c")).json()["error"]["message"]
        assert "a (0.4 GB) is pinned" in message
        assert "b (0.4 GB) is pinned" in message


async def test_a_model_that_never_fits_is_refused_at_once_and_unloads_nothing(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "a", memory_wait_seconds=60.0) as engine:
        folder = model_folder(tmp_path / "models", "giant")
        os.truncate(folder / "model.safetensors", 2 * TWO)
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


async def test_what_a_worker_reports_corrects_the_ledger(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "b") as engine:
        model_folder(tmp_path / "models", "fat", memory_bytes=TWO - MODEL_BYTES // 2)
        before = await placement(engine, "b")
        assert (before["charged_bytes"], before["estimate_bytes"] // 1000) == (0, MODEL_BYTES // 1000)
        await engine.chat("hello", "fat")
        found = await placement(engine, "fat")
        assert found["memory"]["footprint_bytes"] == found["charged_bytes"] == TWO - MODEL_BYTES // 2
        assert (await engine.chat("hello", "b")).status_code == 200
        assert await loaded(engine) == {"b"}, "the estimates alone would have fitted side by side"


async def test_the_ledger_ends_at_zero(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "a", "b") as engine:
        model_folder(tmp_path / "models", "bad", load_error="cut short")
        for model in ("a", "b", "bad"):
            await engine.chat("hello", model)
        assert (await admin(engine))["charged_bytes"] > 0
        for model in ("a", "b"):
            await post(engine, model, "unload")
        assert (await admin(engine))["charged_bytes"] == 0


async def test_what_a_load_has_taken_is_known_to_be_ours(tmp_path: Path) -> None:
    """Else it counts twice while it loads: it is reserved in full, and what it has taken is missing from what is available."""
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


@pytest.mark.parametrize(("limit_bytes", "kv_bytes"), [(6 * GB, 2 * GB), (2 * GB, 2 * GB - MODEL_BYTES)])
async def test_a_worker_is_told_how_much_kv_its_requests_may_take_of_what_there_is(
    tmp_path: Path, limit_bytes: int, kv_bytes: int
) -> None:
    """A quarter of what this process may have of the machine, or what the model leaves of the limit."""
    machine = FakeMachine(Reading(total_bytes=8 * GB, available_bytes=8 * GB))
    async with engine_for(tmp_path, "a", memory_limit_bytes=limit_bytes, machine=machine) as engine:
        answer = (await engine.chat("told", "a")).json()["choices"][0]["message"]["content"]
        told = msgspec.json.decode(answer.removesuffix("!"), type=WorkerConfig)
        assert told.active_kv_bytes is not None
        assert abs(told.active_kv_bytes - kv_bytes) < 1000


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
async def test_nothing_is_on_a_workers_command_line_but_its_channel(tmp_path: Path) -> None:
    """New or spare: what it is to be comes as its first message."""
    async with engine_for(tmp_path, "a", "b", warm_spare=True) as engine:
        fresh = (await engine.status("a"))["pid"]
        await until_spare(engine)
        spares = processes_of(os.getpid())
        spare = (await engine.status("b"))["pid"]
        assert spare in spares - {fresh}
        for pid in (fresh, spare):
            *_, module, option, fd, end = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            assert (module, option, fd.isdecimal(), end) == (WORKER, "--fd", True, "")
            before = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-4]
            assert before == [sys.executable, "-P", "-m"]


async def test_other_programs_count(tmp_path: Path) -> None:
    machine = FakeMachine(Reading(total_bytes=8 * GB, available_bytes=GB))
    async with engine_for(tmp_path, "a", memory_limit_bytes=6 * GB, memory_reserve_bytes=GB, machine=machine) as engine:
        refused = await engine.chat("hello", "a")
        assert refused.status_code == 503
        assert "other programs use the rest" in refused.json()["error"]["message"]
        machine.reading = replace(machine.reading, available_bytes=3 * GB)
        assert (await engine.chat("hello", "a")).status_code == 200


async def test_models_that_grow_beyond_the_limit_are_asked_to_give_and_idle_ones_leave(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`fat` is admitted by its estimate beside the others, and then holds more than all may hold together."""
    async with engine_for(
        tmp_path, "idle", "kept", memory_limit_bytes=3 * MODEL_BYTES + GB, idle_unload_seconds=0.8
    ) as engine:
        model_folder(tmp_path / "models", "fat", memory_bytes=4 * MODEL_BYTES + GB)
        await post(engine, "kept", "pin")
        kept = (await engine.status("kept"))["pid"]
        async with busy(engine, "idle"), busy(engine, "fat"), asyncio.timeout(10):
            while (status := await engine.status("kept"))["freed"] == 0:
                await asyncio.sleep(0.05)
            assert status["freed"] == (await engine.status("fat"))["freed"] == 1, "asked once"
            assert await loaded(engine) == {"idle", "kept", "fat"}, "in use or pinned"
        async with asyncio.timeout(10):
            while await loaded(engine) != {"kept"}:
                await asyncio.sleep(0.05)
        assert (await placement(engine, "fat"))["unloads"] == {"surplus": 1}
        assert is_alive(kept)
        assert (await engine.chat("hello", "idle")).status_code == 200
    said = [record for record in caplog.records if getattr(record, "action", "") == "memory_surplus"]
    assert len(said) == 1
    assert vars(said[0])["limit_bytes"] == 3 * MODEL_BYTES + GB < vars(said[0])["charged_bytes"]


async def test_under_pressure_idle_models_go_first_then_kv(tmp_path: Path) -> None:
    machine = FakeMachine()
    async with engine_for(tmp_path, "a", "b", "c", machine=machine, idle_unload_seconds=0.4) as engine:
        await post(engine, "b", "pin")
        idle, pinned = (await engine.status("a"))["pid"], (await engine.status("b"))["pid"]
        machine.reading = replace(machine.reading, pressure="warning")
        await until_dead(idle)
        async with asyncio.timeout(10):
            while (await engine.status("b"))["freed"] == 0:
                await asyncio.sleep(0.05)
        assert is_alive(pinned)
        assert (await placement(engine, "a"))["unloads"].keys() <= {"pressure", "idle"}
        assert (await engine.chat("hello", "c")).status_code == 200, "it fits"


async def test_a_warning_keeps_more_free_and_does_not_unload_what_was_just_loaded(tmp_path: Path) -> None:
    machine = FakeMachine()
    options: dict[str, Any] = {"memory_reserve_bytes": GB, "minimum_residency_seconds": 60.0}
    async with engine_for(
        tmp_path, "a", "b", machine=machine, idle_unload_seconds=0.4, ttl_seconds={"a": 0}, **options
    ) as engine:
        pid = (await engine.status("a"))["pid"]
        machine.reading = replace(machine.reading, available_bytes=2 * GB, pressure="warning")
        async with asyncio.timeout(10):
            while (await engine.status("a"))["freed"] < 2:  # two sweeps, and nothing idle to unload
                await asyncio.sleep(0.05)
        refused = await engine.chat("hello", "b")
        assert refused.status_code == 503
        message = refused.json()["error"]["message"]
        assert "short of memory (warning)" in message
        assert "a (0.4 GB) was loaded just now" in message
        assert (await engine.status("a"))["pid"] == pid
        machine.reading = replace(machine.reading, available_bytes=4 * GB)
        assert (await engine.chat("hello", "b")).status_code == 200


async def test_critically_short_memory_refuses_every_request_until_it_is_over(tmp_path: Path) -> None:
    machine = FakeMachine()
    async with engine_for(tmp_path, "a", machine=machine, idle_unload_seconds=0.4) as engine:
        await post(engine, "a", "pin")
        await engine.chat("hello", "a")
        machine.reading = replace(machine.reading, pressure="critical")
        async with asyncio.timeout(10):
            while (refused := await engine.chat("hello", "a")).status_code == 200:
                await asyncio.sleep(0.05)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "memory_full")
        assert int(refused.headers["Retry-After"]) > 0
        assert "a (0.4 GB)" in refused.json()["error"]["message"]
        machine.reading = replace(machine.reading, pressure="normal")
        async with asyncio.timeout(10):
            while (await engine.chat("hello", "a")).status_code != 200:
                await asyncio.sleep(0.05)


async def test_the_resident_set_is_loaded_at_start_and_a_missing_one_is_only_logged(tmp_path: Path) -> None:
    async with engine_for(tmp_path, "a", "b", resident=("nobody", "b"), idle_unload_seconds=0.2) as engine:
        async with asyncio.timeout(10):
            while await loaded(engine) != {"b"}:
                await asyncio.sleep(0.02)
        found = await placement(engine, "b")
        assert (found["resident"], found["pinned"]) == (True, True)


async def test_a_resident_model_that_was_refused_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residents, "RETRY_SECONDS", 0.05)
    machine = FakeMachine(Reading(total_bytes=8 * GB, available_bytes=0))
    async with engine_for(tmp_path, "a", resident=("a",), machine=machine) as engine:
        async with asyncio.timeout(10):
            while (await admin(engine))["refused"] < 2:
                await asyncio.sleep(0.02)
        machine.reading = replace(machine.reading, available_bytes=8 * GB)
        async with asyncio.timeout(10):
            while await loaded(engine) != {"a"}:
                await asyncio.sleep(0.02)
        assert (await placement(engine, "a"))["resident"]


async def test_a_resident_model_that_an_operator_unpinned_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residents, "RETRY_SECONDS", 0.05)
    machine = FakeMachine(Reading(total_bytes=8 * GB, available_bytes=0))
    async with engine_for(tmp_path, "a", resident=("a",), machine=machine) as engine:
        async with asyncio.timeout(10):
            while (await admin(engine))["refused"] < 1:
                await asyncio.sleep(0.02)
        await post(engine, "a", "unpin")
        async with asyncio.timeout(10):
            while any(task.get_name() == "residents" for task in asyncio.all_tasks()):
                await asyncio.sleep(0.02)
        assert not (await placement(engine, "a"))["pinned"]


async def test_a_resident_model_whose_process_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residents, "RETRY_SECONDS", 0.05)
    start, failures = Child.start, [OSError(24, "too many open files")]

    async def start_second(*arguments: Any, **options: Any) -> Child[Any]:
        if failures:
            raise failures.pop()
        return await start(*arguments, **options)

    monkeypatch.setattr(Child, "start", start_second)
    async with engine_for(tmp_path, "a", resident=("a",)) as engine, asyncio.timeout(10):
        while await loaded(engine) != {"a"}:
            await asyncio.sleep(0.02)


async def test_on_16_gb_an_idle_resident_recogniser_leaves_before_a_large_model_loads(tmp_path: Path) -> None:
    model_folder(tmp_path / "models", "listener", model_type="qwen3_asr", capabilities=["asr"])
    large = model_folder(tmp_path / "models", "large")
    os.truncate(large / "model.safetensors", 5 << 30)
    options = {"preset": "16gb", "resident": ("listener",), "memory_limit_bytes": 40 * GB}
    async with engine_for(tmp_path, "small", **options) as engine:
        async with asyncio.timeout(10):
            while await loaded(engine) != {"listener"}:
                await asyncio.sleep(0.02)
        await engine.chat("hello", "small")
        assert await loaded(engine) == {"listener", "small"}
        assert (await engine.chat("hello", "large")).status_code == 200
        assert await loaded(engine) == {"small", "large"}


async def test_ttls_are_the_models_own(tmp_path: Path) -> None:
    options: dict[str, Any] = {"ttl_seconds": {"a": 0.2}, "idle_unload_seconds": 0}
    async with engine_for(tmp_path, "a", "b", **options) as engine:
        pid = (await engine.status("a"))["pid"]
        await engine.chat("hello", "b")
        await until_dead(pid)
        assert await loaded(engine) == {"b"}
        assert (await placement(engine, "b"))["ttl_seconds"] is None


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
    """Children of a process, by /proc (tests run on Linux) or ps."""
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
