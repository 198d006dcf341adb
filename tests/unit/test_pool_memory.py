"""Memory between models: which give way, which wait, and which are refused. The real pool in virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from duet.errors import MemoryFull, Unavailable
from engine.pool.ledger import WORKER_BYTES
from engine.pressure import Reading
from tests.fakes.engine_service import FakeMachine, model_folder
from tests.fakes.virtual_pool import VirtualPool, virtual_pool
from tests.fakes.worker_children import FakeChildren
from tests.folders import write_weights

GB = 10**9
MODEL_BYTES = WORKER_BYTES
"""What a model is charged here: its weights are nothing, and KV is off."""
TWO = 2 * MODEL_BYTES + MODEL_BYTES // 2
"""Memory for two models."""


@contextmanager
def pool_for(tmp_path: Path, *names: str, **options: Any) -> Iterator[VirtualPool]:
    given = {
        "kv_ram_bytes": 0, "memory_limit_bytes": TWO, "minimum_residency_seconds": 0.0, "memory_wait_seconds": 0.0, **options,
    }  # fmt: skip
    with virtual_pool(tmp_path, *names, **given) as house:
        yield house


def refused(house: VirtualPool, model: str) -> MemoryFull:
    """How a request for the model is refused: as a 503."""
    with pytest.raises(MemoryFull) as caught:
        house.chat(model)
    assert (caught.value.status, caught.value.code) == (503, "memory_full")
    return caught.value


def test_the_longest_unused_model_makes_room_for_a_third(tmp_path: Path) -> None:
    with pool_for(tmp_path, "a", "b", "c") as house:
        house.chat("a")
        first = house.worker("a")
        house.chat("b")
        house.chat("c")
        assert house.loaded == {"b", "c"}
        assert first.returncode is not None
        assert house.placement("a").unloads == {"evicted": 1}


def test_a_request_waits_for_a_busy_model_to_become_idle(tmp_path: Path) -> None:
    with pool_for(tmp_path, "a", "b", "c", memory_wait_seconds=20.0) as house:
        busy = [house.busy("a"), house.busy("b")]
        waiting = house.ask("c")
        house.until(lambda: house.status.waiting_for_memory > 0)
        for asked in busy:
            house.leave(asked)
        house.until(waiting.task.done)
        assert waiting.error is None


def test_nothing_is_unloaded_for_a_client_that_has_left(tmp_path: Path) -> None:
    with pool_for(tmp_path, "a", "b", "c", memory_wait_seconds=60.0) as house:
        house.busy("a")
        busy = house.busy("b")
        asking = house.ask("c")
        house.until(lambda: house.status.waiting_for_memory == 1)
        house.leave(asking)
        house.until(lambda: house.status.waiting_for_memory == 0)
        house.leave(busy)
        house.wait(120.0)
        assert house.loaded == {"a", "b"}
        assert house.starts("c") == 0


def test_a_model_that_was_just_loaded_stays_for_its_minimum(tmp_path: Path) -> None:
    with pool_for(tmp_path, "a", "b", "c", minimum_residency_seconds=60.0) as house:
        house.chat("a")
        house.chat("b")
        assert "was loaded just now" in refused(house, "c").message
        house.wait(60.0)
        house.chat("c")


def test_a_pinned_model_stays_until_it_is_unpinned(tmp_path: Path) -> None:
    with pool_for(tmp_path, "a", "b", "c", idle_unload_seconds=0.2) as house:
        house.pin("a")
        assert house.placement("a").pinned
        house.chat("a")
        worker = house.worker("a")
        house.chat("b")
        house.until(lambda: house.loaded == {"a"})  # b's TTL passes, a's does not count
        house.wait(60.0)
        assert worker.returncode is None
        house.pin("a", False)
        assert not house.placement("a").pinned
        house.until(lambda: worker.returncode is not None)


def test_pinned_models_are_a_503_that_names_them(tmp_path: Path) -> None:
    with pool_for(tmp_path, "a", "b", "c") as house:
        for model in ("a", "b"):
            house.pin(model)
            house.load(model)
        message = refused(house, "c").message
        assert "a (0.4 GB) is pinned" in message
        assert "b (0.4 GB) is pinned" in message


def test_what_a_worker_reports_corrects_the_ledger(tmp_path: Path) -> None:
    with pool_for(tmp_path, "b", "fat") as house:
        house.resident_bytes["fat"] = TWO - MODEL_BYTES // 2
        before = house.placement("b")
        assert (before.charged_bytes, before.estimate_bytes // 1000) == (0, MODEL_BYTES // 1000)
        house.chat("fat")
        found = house.placement("fat")
        assert found.memory is not None
        assert found.memory.footprint_bytes == found.charged_bytes == TWO - MODEL_BYTES // 2
        house.chat("b")
        assert house.loaded == {"b"}, "the estimates alone would have fitted side by side"


def test_the_ledger_ends_at_zero(tmp_path: Path) -> None:
    with pool_for(tmp_path, "a", "b", "bad") as house:
        house.load_ends["bad"] = "fail_to_load"
        house.chat("a")
        house.chat("b")
        with pytest.raises(Unavailable, match="cut short"):
            house.chat("bad")
        assert house.status.charged_bytes > 0
        for model in ("a", "b"):
            house.unload(model)
        assert house.status.charged_bytes == 0


@pytest.mark.parametrize(("limit_bytes", "kv_bytes"), [(6 * GB, 2 * GB), (2 * GB, 2 * GB - MODEL_BYTES)])
def test_a_worker_is_told_how_much_kv_its_requests_may_take_of_what_there_is(
    tmp_path: Path, limit_bytes: int, kv_bytes: int
) -> None:
    """A quarter of what this process may have of the machine, or what the model leaves of the limit."""
    machine = FakeMachine(Reading(total_bytes=8 * GB, available_bytes=8 * GB))
    with pool_for(tmp_path, "a", memory_limit_bytes=limit_bytes, machine=machine) as house:
        house.chat("a")
        told = house.worker("a").config
        assert told is not None
        assert told.active_kv_bytes is not None
        assert abs(told.active_kv_bytes - kv_bytes) < 1000


def test_other_programs_count(tmp_path: Path) -> None:
    machine = FakeMachine(Reading(total_bytes=8 * GB, available_bytes=GB))
    options = {"memory_limit_bytes": 6 * GB, "memory_reserve_bytes": GB}
    with pool_for(tmp_path, "a", machine=machine, **options) as house:
        assert "other programs use the rest" in refused(house, "a").message
        machine.reading = replace(machine.reading, available_bytes=3 * GB)
        house.chat("a")


def test_models_that_grow_beyond_the_limit_are_asked_to_give_and_idle_ones_leave(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`fat` is admitted by its estimate beside the others, and then holds more than all may hold together."""
    limit = 3 * MODEL_BYTES + GB
    with pool_for(
        tmp_path, "idle", "kept", "fat", memory_limit_bytes=limit, ttl_seconds={"idle": 0, "fat": 0}
    ) as house:
        house.resident_bytes["fat"] = 4 * MODEL_BYTES + GB
        house.pin("kept")
        house.chat("kept")
        kept = house.worker("kept")
        busy = [house.busy("idle"), house.busy("fat")]
        house.until(lambda: kept.freed > 0)
        house.wait(60.0)
        assert kept.freed == house.worker("fat").freed == 1, "asked once"
        assert house.loaded == {"idle", "kept", "fat"}, "in use or pinned"
        for asked in busy:
            house.leave(asked)
        house.until(lambda: "fat" not in house.loaded)
        house.wait(60.0)
        assert house.loaded == {"idle", "kept"}, "no more than need be"
        assert house.placement("fat").unloads == {"surplus": 1}
        assert kept.returncode is None
        house.chat("idle")
    said = [record for record in caplog.records if getattr(record, "action", "") == "memory_surplus"]
    assert len(said) == 1
    assert vars(said[0])["limit_bytes"] == limit < vars(said[0])["charged_bytes"]


def test_under_pressure_idle_models_go_first_then_kv(tmp_path: Path) -> None:
    machine = FakeMachine()
    with pool_for(tmp_path, "a", "b", "c", machine=machine) as house:
        house.pin("b")
        house.chat("a")
        house.chat("b")
        idle, pinned = house.worker("a"), house.worker("b")
        machine.reading = replace(machine.reading, pressure="warning")
        house.until(lambda: idle.returncode is not None)
        assert pinned.freed == 0
        house.until(lambda: pinned.freed > 0)
        assert pinned.returncode is None
        assert house.placement("a").unloads == {"pressure": 1}
        house.chat("c")  # it fits


def test_a_warning_keeps_more_free_and_does_not_unload_what_was_just_loaded(tmp_path: Path) -> None:
    machine = FakeMachine()
    options: dict[str, Any] = {"memory_reserve_bytes": GB, "minimum_residency_seconds": 60.0}
    with pool_for(tmp_path, "a", "b", machine=machine, ttl_seconds={"a": 0}, **options) as house:
        house.chat("a")
        worker = house.worker("a")
        machine.reading = replace(machine.reading, available_bytes=2 * GB, pressure="warning")
        house.until(lambda: worker.freed >= 2)  # two sweeps, and nothing idle to unload
        message = refused(house, "b").message
        assert "short of memory (warning)" in message
        assert "a (0.4 GB) was loaded just now" in message
        assert house.worker("a") is worker
        machine.reading = replace(machine.reading, available_bytes=4 * GB)
        house.chat("b")


def test_critically_short_memory_refuses_every_request_until_it_is_over(tmp_path: Path) -> None:
    machine = FakeMachine()
    with pool_for(tmp_path, "a", machine=machine) as house:
        house.pin("a")
        house.chat("a")
        machine.reading = replace(machine.reading, pressure="critical")
        house.until(lambda: house.status.pressure == "critical")
        for _ in range(3):
            error = refused(house, "a")
            assert (error.retry_after_seconds or 0) > 0
            assert "a (0.4 GB)" in error.message
            house.wait(10.0)
        machine.reading = replace(machine.reading, pressure="normal")
        house.until(lambda: house.status.pressure == "normal")
        house.chat("a")


def test_the_resident_set_is_loaded_at_start_and_a_missing_one_is_only_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pool_for(tmp_path, "a", "b", resident=("nobody", "b"), idle_unload_seconds=0.2) as house:
        house.until(lambda: house.loaded == {"b"})
        house.wait(60.0)
        assert house.loaded == {"b"}
        found = house.placement("b")
        assert (found.resident, found.pinned) == (True, True)
    said = [record for record in caplog.records if getattr(record, "action", "") == "resident_failed"]
    assert ["nobody" in record.getMessage() for record in said] == [True]


def test_a_resident_model_that_was_refused_is_tried_again(tmp_path: Path) -> None:
    machine = FakeMachine(Reading(total_bytes=8 * GB, available_bytes=0))
    with pool_for(tmp_path, "a", resident=("a",), machine=machine) as house:
        house.until(lambda: house.status.refused >= 2)
        machine.reading = replace(machine.reading, available_bytes=8 * GB)
        house.until(lambda: house.loaded == {"a"})
        assert house.placement("a").resident


def test_a_resident_model_that_an_operator_unpinned_is_not_tried_again(tmp_path: Path) -> None:
    machine = FakeMachine(Reading(total_bytes=8 * GB, available_bytes=0))
    with pool_for(tmp_path, "a", resident=("a",), machine=machine) as house:
        house.until(lambda: house.status.refused >= 1)
        house.pin("a", False)
        machine.reading = replace(machine.reading, available_bytes=8 * GB)
        house.wait(600.0)
        assert house.starts("a") == 0
        assert not house.placement("a").pinned


def test_a_resident_model_whose_process_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, failures = FakeChildren.start, [OSError(24, "too many open files")]

    async def start_second(*arguments: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return await start(*arguments, **options)

    monkeypatch.setattr(FakeChildren, "start", start_second)
    with pool_for(tmp_path, "a", resident=("a",)) as house:
        house.until(lambda: house.loaded == {"a"})
        assert not failures


def test_on_16_gb_an_idle_resident_recogniser_leaves_before_a_large_model_loads(tmp_path: Path) -> None:
    model_folder(tmp_path / "models", "listener", model_type="qwen3_asr")
    large = model_folder(tmp_path / "models", "large")
    write_weights(large / "model.safetensors", 5 << 30)
    options: dict[str, Any] = {"preset": "16gb", "resident": ("listener",), "memory_limit_bytes": 40 * GB}
    with pool_for(tmp_path, "small", **options) as house:
        house.until(lambda: house.loaded == {"listener"})
        house.chat("small")
        assert house.loaded == {"listener", "small"}
        house.chat("large")
        assert house.loaded == {"small", "large"}


def test_ttls_are_the_models_own(tmp_path: Path) -> None:
    options: dict[str, Any] = {"ttl_seconds": {"a": 30.0}, "idle_unload_seconds": 0}
    with pool_for(tmp_path, "a", "b", **options) as house:
        house.chat("a")
        worker = house.worker("a")
        house.chat("b")
        house.wait(20.0)
        assert worker.returncode is None
        house.until(lambda: worker.returncode is not None, 15.0)
        house.wait(3600.0)
        assert house.loaded == {"b"}
        assert house.placement("b").ttl_seconds is None
