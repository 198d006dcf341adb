"""The worker's loop: limits, stops, failures of one row, cancellation in every state."""

from __future__ import annotations

import dataclasses
import gc
import math
import threading
import weakref
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest

from duet.errors import PayloadTooLarge
from engine.fleet.protocol import Cancel, Ping, Pong, Shutdown
from engine.types import Accepted, Embedded, EmbeddingRequest, Failed, Finished, MemoryReport, TextDelta
from engine.worker.loop import Stop
from engine.worker.model import Loaded
from engine.worker.reports import Reporter
from engine.worker.runtime import memory
from engine.worker.runtime.batch import Batch, Row
from engine.worker.runtime.loader import LoadError, load
from engine.worker.runtime.runner import FAULTS
from tests.mlx.conftest import Driver, ask, picture, words


def refusal(loaded: Loaded, request: Any) -> Failed:
    driver = Driver(loaded)
    driver.post(request)
    driver.drain()
    (failed,) = driver.of(request.id, Failed)
    assert not driver.of(request.id, Finished)
    return failed


def test_a_stop_string_across_tokens_ends_the_answer_before_it(model: Callable[..., Loaded]) -> None:
    loaded = model("plain")
    answer = Driver(loaded).run([ask("a", words(37, 5), tokens=40)])["a"].decode(errors="replace")
    stop = answer[10:13]
    driver = Driver(loaded)
    driver.run([ask("a", words(37, 5), tokens=40, stop=(stop,))])
    assert driver.text("a") == answer[: answer.index(stop)]
    assert driver.of("a", Finished)[0].reason == "stop"


def test_an_answer_that_reaches_its_limit_says_length(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("plain"))
    driver.run([ask("a", "hello", tokens=7), ask("b", "hello", tokens=1)])
    for name, count in (("a", 7), ("b", 1)):
        (finished,) = driver.of(name, Finished)
        assert (finished.reason, finished.usage.completion_tokens) == ("length", count)
        assert len(driver.of(name, TextDelta)) == count


def test_a_limit_beyond_the_context_is_cut_to_what_is_left_and_said(model: Callable[..., Loaded]) -> None:
    loaded = dataclasses.replace(model("plain"), context=64)
    driver = Driver(loaded)
    driver.run([ask("a", "hello", tokens=32_000), ask("b", "hello", tokens=3)])
    (accepted,), (finished,) = driver.of("a", Accepted), driver.of("a", Finished)
    assert finished.reason == "length"
    assert accepted.max_tokens == finished.usage.completion_tokens == 64 - accepted.prompt_tokens
    assert driver.of("b", Accepted)[0].max_tokens is None


@pytest.mark.parametrize(
    ("request_", "code", "param"),
    [
        (ask("a", "x" * 5000), "context_length_exceeded", "messages"),
        (ask("a", "x", logit_bias={99999: 1.0}), "invalid_value", "logit_bias"),
        (ask("a", "x", images=(picture(1),)), "invalid_value", "messages"),
        (EmbeddingRequest(id="a", model="m", inputs=("x",)), "invalid_value", "model"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(
    model: Callable[..., Loaded], request_: Any, code: str, param: str
) -> None:
    failed = refusal(model("plain"), request_)
    assert (failed.code, failed.param) == (code, param)


class NativePanic(BaseException):
    """As pyo3 raises a panic of Rust code: no `Exception`."""


@pytest.mark.parametrize(
    "error", [RecursionError, MemoryError, ValueError, AttributeError, OSError, NativePanic, ZeroDivisionError]
)
@pytest.mark.parametrize("place", ["encoded", "text_of", "answer_format"])
def test_whatever_one_request_raises_ends_that_request_alone(
    model: Callable[..., Loaded], alone: Callable[..., bytes], error: type[BaseException], place: str
) -> None:
    other = ask("other", words(30, 1), tokens=30)
    driver = Driver(model("plain"))
    driver.post(other)
    driver.tick()
    with pytest.MonkeyPatch.context() as patched:

        def fails(*arguments: Any) -> Any:
            raise error("from within a library")

        patched.setattr(f"engine.worker.families.text.{place}", fails)
        driver.post(ask("bad", "x"))
        driver.tick()
    driver.drain()
    (failed,) = driver.of("bad", Failed)
    assert failed.code == "internal_error"
    assert driver.raw("other") == alone("plain", other)


def test_what_a_job_raises_ends_that_job_alone(model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> Any:
        raise NativePanic("from within a library")

    driver = Driver(model("embedding"))
    with monkeypatch.context() as patched:
        patched.setattr("engine.worker.families.embedding._EmbeddingJob._run", fails)
        driver.run_all([EmbeddingRequest(id="bad", model="m", inputs=("x",))])
    assert driver.of("bad", Failed)[0].code == "internal_error"
    driver.run_all([EmbeddingRequest(id="good", model="m", inputs=("x",))])
    assert driver.of("good", Embedded)


def test_a_broken_image_is_refused(model: Callable[..., Loaded]) -> None:
    assert refusal(model("vision"), ask("a", "x", images=(b"no image",))).param == "messages"
    assert refusal(model("vision"), ask("a", "x", images=(picture(1)[:200],))).param == "messages"


@pytest.mark.parametrize("ticks", [0, 1, 3, 12])
def test_cancelling_in_any_state_leaves_the_others_unchanged(
    model: Callable[..., Loaded], alone: Callable[..., bytes], ticks: int
) -> None:
    """After 0 ticks it waits, after 1 and 3 it prefills (700 tokens in chunks of 64), after 12 it runs."""
    loaded = model("plain")
    other = ask("other", words(50, 2), tokens=40)
    expected = alone("plain", other)
    driver = Driver(loaded)
    driver.post(other)
    driver.post(ask("gone", words(600, 1), tokens=500))
    for _ in range(ticks):
        driver.tick()
    driver.post(Cancel("gone"))
    driver.drain()
    assert driver.raw("other") == expected
    assert not driver.of("gone", Finished)
    assert not driver.of("gone", Failed)
    assert driver.loop.idle


def test_a_cancelled_job_runs_no_further(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("embedding"))
    driver.post(EmbeddingRequest(id="e", model="m", inputs=tuple(words(500, i) for i in range(64))))
    driver.tick()
    driver.post(Cancel("e"))
    driver.drain()
    assert driver.recorder.sent == []


def test_a_row_that_fails_does_not_harm_its_neighbours(
    model: Callable[..., Loaded], alone: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = model("plain")
    other = ask("other", words(50, 2), tokens=30)
    expected = alone("plain", other)
    driver = Driver(loaded)
    driver.post(other)
    driver.post(ask("bad", words(20, 3), tokens=30, logit_bias={5: 1.0}))
    for _ in range(6):
        driver.tick()
    row = driver.rows()["bad"]

    def fail(logits: Any) -> Any:
        raise ValueError("broken grammar")

    monkeypatch.setattr(row.penalties, "apply", fail)
    driver.drain()
    assert driver.raw("other") == expected
    (failed,) = driver.of("bad", Failed)
    assert failed.code == "internal_error"
    assert "broken grammar" not in failed.message


@pytest.mark.parametrize("place", ["_forward", "read", "copies_of", "leave"])
def test_a_step_that_fails_ends_the_rows_that_ran_and_nobody_else(
    model: Callable[..., Loaded], alone: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    loaded = model("plain")
    waiting, later = ask("waiting", words(900, 2), tokens=20), ask("later", words(40, 3), tokens=20)
    expected = {item.id: alone("plain", item) for item in (waiting, later)}
    driver = Driver(loaded)
    driver.post(ask("a", "hello", tokens=12))
    driver.post(ask("b", words(20, 1), tokens=500))
    driver.tick()
    driver.post(waiting)
    for _ in range(4):
        driver.tick()
    failed = driver.fail_step(monkeypatch, "no memory for that", place=place, once=True)
    while not failed or not driver.of("b", Failed):
        driver.tick()
    assert driver.of("b", Failed)[0].code == "internal_error"
    assert len([*driver.of("a", Failed), *driver.of("a", Finished)]) == 1
    driver.run([later])
    assert {name: driver.raw(name) for name in expected} == expected
    assert not driver.runner.busy


def test_a_first_step_apart_that_fails_ends_its_row_alone(
    model: Callable[..., Loaded], alone: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = model("plain")
    batch = msgspec.structs.replace(ask("batch", words(50, 2), tokens=60), priority="batch")
    expected = alone("plain", batch)
    driver = Driver(loaded)
    driver.post(batch)
    while len(driver.of("batch", TextDelta)) < 5:
        driver.tick()

    def fail(row: Row) -> Any:
        raise RuntimeError("no memory for that")

    monkeypatch.setattr(driver.runner, "_step_alone", fail)
    driver.post(ask("quick", "hello", tokens=5))
    driver.drain()
    assert driver.of("quick", Failed)[0].code == "internal_error"
    assert driver.raw("batch") == expected


def test_steps_that_never_succeed_end_the_worker(model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(model("plain"))
    driver.fail_step(monkeypatch)
    for i in range(FAULTS - 1):
        driver.run_all([ask(f"r{i}", "hello", tokens=5)])
        assert driver.of(f"r{i}", Failed)[0].code == "internal_error"
    driver.post(ask("last", "hello", tokens=5))
    with pytest.raises(RuntimeError, match="gone"):
        driver.loop.run()
    assert driver.of("last", Failed)[0].code == "worker_lost"


def test_an_unexpected_error_fails_every_live_request_and_is_raised(
    model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(model("plain"))
    driver.post(ask("a", "hello", tokens=50))
    driver.post(ask("b", "hello", tokens=50))
    for _ in range(4):
        driver.tick()
    driver.break_loop(monkeypatch)
    with pytest.raises(RuntimeError):
        driver.loop.run()
    assert [driver.of(name, Failed)[0].code for name in "ab"] == ["worker_lost", "worker_lost"]


def test_a_device_that_fails_in_a_step_and_then_in_every_prompt_ends_the_worker(
    model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(model("plain"))
    driver.post(ask("a", "hello", tokens=50))
    for _ in range(4):
        driver.tick()
    driver.fail_step(monkeypatch)
    driver.fail_prefill(monkeypatch)
    for i in range(FAULTS - 2):
        driver.run_all([ask(f"r{i}", "hello", tokens=5)])
    driver.post(ask("last", "hello", tokens=5))
    with pytest.raises(RuntimeError, match="gone"):
        driver.loop.run()
    assert driver.of("last", Failed)[0].code == "worker_lost"


def test_prompts_that_fail_by_themselves_never_end_the_worker(
    model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(model("plain"))
    with monkeypatch.context() as patch:
        driver.fail_prefill(patch, "a prompt of its own kind")
        for i in range(FAULTS + 2):
            driver.run_all([ask(f"r{i}", "hello", tokens=5)])
            assert driver.of(f"r{i}", Failed)
    driver.run([ask("well", "hello", tokens=5)])


def test_the_memory_of_a_failed_step_is_free_at_once(
    model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(model("plain"))
    driver.post(ask("a", "hello", tokens=50))
    for _ in range(4):
        driver.tick()
    lost = weakref.ref(driver.batch)

    def fail(self: Batch) -> Any:
        cache = self._cache  # as a frame of the model would hold it
        raise RuntimeError(f"no memory for {len(cache)} layers")

    monkeypatch.setattr(Batch, "_forward", fail)
    gc.disable()
    try:
        driver.drain()
        assert driver.of("a", Failed)
        assert lost() is None
    finally:
        gc.enable()


def test_a_row_that_was_swapped_out_goes_on_after_a_step_that_failed(
    model: Callable[..., Loaded], alone: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = model("plain")
    swapped = ask("swapped", words(50, 2), tokens=40)
    expected = alone("plain", swapped)
    driver = Driver(loaded)
    driver.post(swapped)
    driver.post(ask("other", "hello", tokens=100))
    while len(driver.of("swapped", TextDelta)) < 5:
        driver.tick()
    driver.fail_step(monkeypatch, "no memory for that", once=True)
    assert driver.preempt("swapped")
    driver.drain()
    assert driver.of("other", Failed)
    assert driver.raw("swapped") == expected


def test_shutdown_and_the_gateway_s_end_stop_the_loop(model: Callable[..., Loaded]) -> None:
    for message in (Shutdown(), None):
        driver = Driver(model("plain"))
        driver.post(message)
        with pytest.raises(Stop):
            driver.tick()


def test_log_probabilities_are_those_of_the_model(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("plain"))
    driver.run([ask("a", words(30, 1), tokens=5, top_logprobs=4, temperature=2.0, seed=1)])
    for event in driver.of("a", TextDelta):
        values = [item.logprob for item in event.top]
        assert len(values) == 4
        assert values == sorted(values, reverse=True)
        assert values[0] >= event.logprob.logprob
        assert np.exp(values).sum() <= 1.0


def test_libraries_cannot_set_the_wired_limit() -> None:
    memory.configure()
    for place in (mx, mx.metal):
        assert place.set_wired_limit(1 << 20) == 0
        assert place.set_wired_limit.__module__ == "engine.worker.runtime.memory"


def test_a_wired_limit_is_set_once_within_what_metal_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(mx, "set_wired_limit", asked.append)
    monkeypatch.setattr(memory, "working_set_bytes", lambda: 5000)
    memory.configure(9000)
    assert asked == [5000]
    assert mx.set_wired_limit(1) == 0, "and it is out of the libraries' hands"
    assert asked == [5000]


def test_a_system_that_refuses_a_wired_limit_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(limit: int) -> int:
        raise ValueError("macOS 15 or later is needed")

    monkeypatch.setattr(mx, "set_wired_limit", refuse)
    memory.configure(9000)
    assert mx.set_wired_limit(1) == 0


def test_freed_buffers_are_kept_for_a_while_and_then_given_back(
    model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[str] = []
    monkeypatch.setattr(memory, "release", lambda: released.append("all"))
    driver = Driver(model("plain"))
    quiet = driver.loop._buffers.quiet  # what the loop calls when there is nothing to do
    assert quiet(0.0) is None  # nothing was used yet
    for name in ("a", "b"):
        released.clear()
        driver.run([ask(name, "hello", tokens=3)])
        assert quiet(10.0) == memory.RELEASE_SECONDS
        assert quiet(10.0 + memory.RELEASE_SECONDS / 2) == memory.RELEASE_SECONDS / 2
        assert not released
        assert quiet(10.0 + memory.RELEASE_SECONDS) is None
        assert quiet(99.0) is None
        assert released == ["all"]


def test_the_gateway_hears_that_buffers_were_given_back(
    model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report comes behind the release: the loop may wait for hours then, and the ledger believes what it said last."""
    cache_bytes = [100 << 20]
    monkeypatch.setattr(memory, "sample", lambda: MemoryReport(1 << 20, cache_bytes[0], 1 << 20, 0, 0))
    monkeypatch.setattr(memory, "release", lambda: cache_bytes.__setitem__(0, 0))
    monkeypatch.setattr(memory, "RELEASE_SECONDS", 0.02)
    driver = Driver(model("plain"))
    driver.run([ask("a", "hello", tokens=3)])
    driver.tick()  # waits until the buffers have been unused for long enough
    threading.Timer(0.2, driver.mailbox.put, [Ping()]).start()  # ends the wait of the next tick, which gives them back
    driver.tick()
    assert [report.cache_bytes for report in driver.recorder.memory] == [100 << 20, 0]


def test_memory_is_reported_when_it_changes_notably(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[MemoryReport] = []
    held = 100 << 20
    monkeypatch.setattr(memory, "own_footprint_bytes", lambda: held)
    for count in ("get_active_memory", "get_cache_memory"):  # other tests' arrays may be more than `held`
        monkeypatch.setattr(mx, count, lambda: 0)
    monkeypatch.setattr("engine.worker.reports.REPORT_SECONDS", math.inf)
    reporter = Reporter(sent.append, memory.sample, MemoryReport(), differs=memory.differs)
    reporter.report(now=True)
    held += memory.NOTABLE_BYTES - 1
    reporter.report(now=True)
    assert [report.footprint_bytes for report in sent] == [100 << 20]
    held += 1
    reporter.report()
    assert len(sent) == 1, "not twice within the time between two reports"
    reporter.report(now=True)
    assert sent[-1].footprint_bytes == held


@pytest.mark.parametrize("damage", ["no config", "no weights", "cut weights", "no safetensors", "unknown type"])
def test_a_damaged_folder_says_what_is_wrong(checkpoint: Callable[..., Any], tmp_path: Any, damage: str) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(checkpoint("plain"), folder)
    weights = folder / "model.safetensors"
    if damage == "no config":
        (folder / "config.json").unlink()
    elif damage == "no weights":
        weights.unlink()
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no safetensors":
        weights.write_bytes(b"<html>not found</html>" * 100)
    else:
        (folder / "config.json").write_text('{"model_type": "qwen99"}')
    with pytest.raises(LoadError) as caught:
        load(folder, "chat")
    assert "model" in str(caught.value)


def test_the_loop_itself_answers_while_it_works_and_while_it_waits(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("plain"))
    driver.post(Ping())
    driver.tick()
    assert driver.recorder.sent == [Pong()]
    driver.post(ask("a", words(300, 1), tokens=4))
    driver.tick()
    driver.post(Ping())
    driver.tick()
    assert driver.recorder.sent.count(Pong()) == 2
    assert not driver.of("a", Finished), "in the middle of a prompt"
    driver.drain()
    assert driver.of("a", Finished)


def limit_messages(driver: Driver, too_large: Callable[[Any], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """The channel refuses messages for which `too_large` holds."""
    send = driver.recorder.send

    def limited(message: Any) -> None:
        if too_large(message):
            raise PayloadTooLarge("too much for one message")
        send(message)

    monkeypatch.setattr(driver.recorder, "send", limited)


def test_an_event_that_is_too_large_fails_its_request_alone(
    model: Callable[..., Loaded], alone: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = model("plain")
    other = ask("other", words(50, 2), tokens=30)
    expected = alone("plain", other)
    driver = Driver(loaded)
    limit_messages(
        driver,
        lambda message: any(
            isinstance(event, TextDelta) and event.id == "big" for event in getattr(message, "events", ())
        ),
        monkeypatch,
    )
    driver.run_all([other, ask("big", words(20, 3), tokens=30)])
    assert driver.raw("other") == expected
    assert len(driver.of("other", Finished)) == 1
    (failed,) = driver.of("big", Failed)
    assert failed.code == "payload_too_large"
    assert not driver.of("big", Finished)


def test_a_result_that_is_too_large_fails_its_request_alone(
    model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(model("embedding"))
    limit_messages(
        driver,
        lambda message: any(
            isinstance(event, Embedded) and len(event.vectors) > 1000 for event in getattr(message, "events", ())
        ),
        monkeypatch,
    )
    driver.post(EmbeddingRequest(id="big", model="m", inputs=("x",) * 40))
    driver.post(EmbeddingRequest(id="small", model="m", inputs=("x",), dimensions=4))
    driver.drain()
    (failed,) = driver.of("big", Failed)
    assert failed.code == "payload_too_large"
    assert len(driver.of("small", Embedded)) == 1
