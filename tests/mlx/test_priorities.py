"""Whose turn it is, on a real model: no answer depends on which others ran, waited, or had to give way."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from engine.fleet.protocol import Cancel, PauseBatch
from engine.types import EmbeddingRequest, Failed, Finished, GenerationRequest, Priority, Structure, TextDelta
from engine.worker.model import Loaded
from engine.worker.runtime.batch import Row
from engine.worker.scheduler.batch_pause import HOLD_SECONDS
from tests.mlx.conftest import Driver, ask, picture, words
from tests.mlx.kv import KvDriver

TOKEN_BYTES = 2 * 2 * 2 * 32 * 4
"""Keys and values of the checkpoint "plain": 2 layers, 2 heads of 32 float32."""


def of(priority: Priority, request: GenerationRequest, **more: object) -> GenerationRequest:
    return msgspec.structs.replace(request, priority=priority, **more)


@pytest.mark.parametrize("kept", [True, False], ids=["KV kept", "no KV kept"])
def test_rows_that_give_way_to_memory_say_what_they_would_have_said(
    model: Callable[..., Loaded], tmp_path: Path, kept: bool
) -> None:
    loaded = model("plain")
    requests = [ask(f"r{i}", words(400, i), tokens=150) for i in range(4)]
    first = Driver(loaded)
    expected = first.run(requests)
    prompts = sum(first.of(request.id, Finished)[0].usage.prompt_tokens for request in requests)
    enough_to_begin = (prompts + 100) * TOKEN_BYTES
    if kept:
        driver: Driver = KvDriver(loaded, tmp_path / "kv", active_kv_bytes=enough_to_begin)
    else:
        driver = Driver(loaded, active_kv_bytes=enough_to_begin)
    for request in requests:
        driver.post(request)
    while not all(driver.of(request.id, Finished) for request in requests):
        driver.tick()
    assert {request.id: driver.raw(request.id) for request in requests} == expected
    assert driver.preemptions() > 0, "there was memory for all of them"


def test_an_interactive_request_takes_the_row_of_batch_work(
    model: Callable[..., Loaded], alone: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "engine.worker.loop.LOOKUP_SECONDS", 60.0
    )  # the lookup of a prompt then takes no ticks of others
    loaded = model("plain")
    batch = [of("batch", ask(f"b{i}", words(80, i), tokens=50)) for i in range(2)]
    quick = of("interactive", ask("quick", "hello", tokens=5))
    expected = {item.id: alone("plain", item) for item in [*batch, quick]}
    driver = KvDriver(loaded, tmp_path / "kv", max_rows=2)
    for request in batch:
        driver.post(request)
    while len(driver.of("b0", TextDelta)) < 10:
        driver.tick()
    driver.post(quick)
    for _ in range(20):
        driver.tick()
    assert driver.of("quick", Finished)
    assert not driver.of("b1", Finished)
    while not all(driver.of(request.id, Finished) for request in batch):
        driver.tick()
    assert {request.id: driver.raw(request.id) for request in [*batch, quick]} == expected
    driver.end()


@pytest.mark.parametrize("kind", ["plain", "hybrid", "windowed"])
def test_a_first_token_drawn_apart_from_the_batch_changes_no_answer(
    model: Callable[..., Loaded], alone: Callable[..., bytes], kind: str
) -> None:
    loaded = model(kind)
    batch = [of("batch", ask(f"b{i}", words(60 + 9 * i, i), tokens=60)) for i in range(3)]
    quick = [
        of("interactive", ask("greedy", words(20, 7), tokens=12)),
        of("normal", ask("one token", "hello", tokens=1)),
        ask(
            "drawn", words(30, 8), tokens=12, temperature=1.0, top_p=0.9, seed=3, frequency_penalty=1.0, top_logprobs=2
        ),
        ask("formed", "a number", tokens=12, structure=Structure("regex", "[0-9]{6}", "guided_regex")),
    ]
    expected = {item.id: alone(kind, item) for item in [*batch, *quick]}
    driver = Driver(loaded)
    driver.run(
        [msgspec.structs.replace(quick[-1], id="compiled")]
    )  # compiled before, because compiling takes any number of ticks
    apart: list[str] = []
    step_alone = driver.runner._step_alone

    def noted(row: Row) -> Any:
        apart.append(row.id)
        return step_alone(row)

    driver.runner._step_alone = noted  # type: ignore[method-assign]
    for request in batch:
        driver.post(request)
    for request in quick:  # one after the other: side by side they would be streams, which do not wait for each other
        while len(driver.of("b0", TextDelta)) < 5:
            driver.tick()
        driver.post(request)
        while not driver.of(request.id, Finished):
            driver.tick()
    while not all(driver.of(request.id, Finished) for request in batch):
        driver.tick()
    assert apart == [request.id for request in quick]
    assert {request.id: driver.raw(request.id) for request in [*batch, *quick]} == expected


@pytest.mark.parametrize("kind", ["vision", "hybrid"])
def test_a_picture_whose_first_token_is_drawn_apart_keeps_its_positions(
    model: Callable[..., Loaded], alone: Callable[..., bytes], kind: str
) -> None:
    loaded = model(kind)
    batch = of("batch", ask("b", words(60, 1), tokens=40))
    seen = ask("seen", words(40, 4), images=(picture(3, (160, 128)),), tokens=16)
    expected = {item.id: alone(kind, item) for item in [batch, seen]}
    driver = Driver(loaded)
    driver.post(batch)
    while len(driver.of("b", TextDelta)) < 5:
        driver.tick()
    driver.post(seen)
    driver.drain()
    assert {request.id: driver.raw(request.id) for request in (batch, seen)} == expected


@pytest.mark.parametrize("kind", ["plain", "hybrid", "windowed"])
def test_a_row_that_comes_back_beside_batch_rows_goes_on_where_it_was(
    model: Callable[..., Loaded], alone: Callable[..., bytes], tmp_path: Path, kind: str
) -> None:
    loaded = model(kind)
    batch = of("batch", ask("b", words(60, 1), tokens=60))
    swapped = ask("swapped", words(30, 4), tokens=16)
    expected = {item.id: alone(kind, item) for item in [batch, swapped]}
    driver = KvDriver(loaded, tmp_path / "kv")
    driver.post(batch)
    while len(driver.of("b", TextDelta)) < 5:
        driver.tick()
    driver.post(swapped)
    while len(driver.of("swapped", TextDelta)) < 4:
        driver.tick()
    assert driver.preempt("swapped")
    while not (driver.over("swapped") and driver.over("b")):
        driver.tick()
    assert {request.id: driver.raw(request.id) for request in (batch, swapped)} == expected
    driver.end()


def test_batch_work_that_is_held_neither_ends_nor_spins(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("plain"))
    driver.post(of("batch", ask("b", "a batch of work", tokens=40)))
    while len(driver.of("b", TextDelta)) < 5:
        driver.tick()
    driver.post(PauseBatch(True))
    driver.post(ask("n", "somebody waits", tokens=1))
    while not driver.of("n", Finished):
        driver.tick()
    for _ in range(5):
        if driver.loop.idle:
            break
        driver.tick()
    assert driver.loop.idle
    said = len(driver.of("b", TextDelta))
    assert said < 40
    driver.post(PauseBatch(False))
    while not driver.of("b", Finished):
        driver.tick()
    assert len(driver.of("b", TextDelta)) == 40


class Woken(queue.SimpleQueue[Any]):
    """A mailbox that never waits by the real clock, and fails if it is asked to wait for ever. It really waits for pictures,
    which another process decodes."""

    decoding: Callable[[], bool] = staticmethod(lambda: False)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if self.decoding():
            return super().get(timeout=60)
        assert not self.empty() or timeout is not None, "nothing would wake it"
        return super().get(block=False)


@pytest.mark.parametrize("kind", ["plain", "vision", "embedding"])
@pytest.mark.parametrize("shift", range(12))
def test_a_pause_that_ends_between_two_ticks_is_noticed(
    model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch, kind: str, shift: int
) -> None:
    driver, seconds = Driver(model(kind)), itertools.count(0.0, HOLD_SECONDS / 50)
    driver.mailbox = driver.loop._mailbox = mailbox = Woken()
    driver.loop._desk._post = mailbox.put
    mailbox.decoding = lambda: driver.loop._desk.decoding
    monkeypatch.setattr("engine.worker.loop.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    driver.post(PauseBatch(True))
    driver.tick()
    if kind != "embedding":
        images = (picture(1),) if kind == "vision" else ()
        driver.post(of("batch", ask("b", "a batch of work", tokens=1, images=images)))
    else:
        driver.post(EmbeddingRequest(id="b", model="m", inputs=("x",), priority="batch"))
    for _ in range(shift):  # a tick reads the clock several times: here the pause ends between each two readings once
        next(seconds)
    for _ in range(60):
        driver.tick() if not driver.recorder.sent else None
    assert driver.recorder.sent


def test_a_held_request_can_be_cancelled(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("plain"))
    driver.post(of("batch", ask("b", "a batch of work", tokens=4000)))
    driver.tick()
    driver.post(PauseBatch(True))
    driver.tick()
    driver.post(Cancel("b"))
    for _ in range(4):
        driver.tick() if not (driver.loop.idle and driver.mailbox.empty()) else None
    assert not driver.scheduled()
    assert driver.waiting() == 0


def test_an_answer_that_is_late_fails_once_and_its_neighbour_goes_on(
    model: Callable[..., Loaded], alone: Callable[..., bytes]
) -> None:
    loaded = model("plain")
    slow = msgspec.structs.replace(ask("slow", "tell me", tokens=4000), deadline=time.monotonic() + 0.2)
    other = ask("other", "and me", tokens=30)
    expected = {other.id: alone("plain", other)}
    driver = Driver(loaded)
    for request in (slow, other):
        driver.post(request)
    began = time.monotonic()
    while not (driver.of("slow", Failed) and driver.of("other", Finished)):
        driver.tick()
        assert time.monotonic() - began < 60
    (failed,) = driver.of("slow", Failed)
    assert failed.code == "deadline_exceeded"
    assert not driver.of("slow", Finished)
    assert driver.raw("other") == expected["other"]


def test_an_answer_that_goes_round_in_circles_is_cut_off_when_asked(model: Callable[..., Loaded]) -> None:
    loaded = model("plain")
    biased = ask("r", "dots", tokens=1000, logit_bias={ord("."): 100.0})
    driver = Driver(loaded)
    driver.run([msgspec.structs.replace(biased, stop_on_repetition=True), msgspec.structs.replace(biased, id="free")])
    (cut,), (free,) = driver.of("r", Finished), driver.of("free", Finished)
    assert (cut.reason, cut.repetition) == ("length", True)
    assert cut.usage.completion_tokens < 250
    assert (free.usage.completion_tokens, free.repetition) == (1000, False)


def test_the_gateway_hears_how_full_the_batch_is(model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.worker.reports.REPORT_SECONDS", 0.0)
    driver = Driver(model("plain"), max_rows=1, active_kv_bytes=4000 * TOKEN_BYTES)
    for name in "ab":
        driver.post(ask(name, words(400, 1), tokens=300))
    while not driver.of("b", Finished):
        driver.tick()
    assert any((seen.rows, seen.waiting) == (1, 1) and seen.kv_tokens > 400 for seen in driver.recorder.batch)
    driver.post(ask("last", "bye", tokens=1))
    driver.drain()
    driver.send_reports()
    last = driver.recorder.batch[-1]
    assert (last.rows, last.waiting, last.kv_tokens, last.preemptions) == (0, 0, 0, 0)
    assert last.kv_tokens_bound is not None
    assert 2000 < last.kv_tokens_bound <= 4000
