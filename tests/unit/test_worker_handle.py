"""What callers of a worker see when it dies, however its channel behaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, NoReturn

import msgspec
import pytest

from duet.channel import ChannelClosed
from duet.errors import PayloadTooLarge, WorkerLost
from engine.fleet.handle import WorkerHandle
from engine.fleet.protocol import Ping, Ready
from engine.fleet.starting import EndedWhileLoading, start_worker
from engine.types import Embedded, EmbeddingRequest, only
from engine.worker_config import WorkerConfig
from tests.fakes.virtual_time import VirtualTime
from tests.fakes.worker_children import FakeChild, FakeChildren


class DyingChild:
    """A process that dies when `died` is set, with a channel that cannot be closed in order."""

    name, pid = "worker:dying", 1

    def __init__(self, *, close_fails: bool) -> None:
        self.channel = self
        self.sent: list[msgspec.Struct] = []
        self.died, self.told = asyncio.Event(), asyncio.Event()
        self._close_fails = close_fails

    async def send(self, message: msgspec.Struct) -> None:
        self.sent.append(message)
        self.told.set()

    async def forward(self, take: Callable[[Any], None]) -> NoReturn:
        await self.died.wait()
        raise ChannelClosed

    async def close(self) -> None:
        if self._close_fails:
            raise OSError("the socket is in no state to be closed")
        await asyncio.Event().wait()

    def kill(self) -> None:
        self.died.set()

    async def wait(self) -> int:
        return -9


@pytest.mark.parametrize("close_fails", [True, False])
async def test_a_death_reaches_every_caller_whatever_the_channel_does(close_fails: bool) -> None:
    child = DyingChild(close_fails=close_fails)
    handle = WorkerHandle(child, Ready(("embedding",), None, 1, 1))  # type: ignore[arg-type]
    calling = asyncio.create_task(only(handle.run(EmbeddingRequest(id="1", model="dying", inputs=("x",))), Embedded))
    await child.told.wait()
    child.died.set()
    with pytest.raises(WorkerLost):
        await asyncio.wait_for(calling, 5)
    handle._reader.cancel()
    await asyncio.gather(handle._reader, return_exceptions=True)


async def test_callers_of_a_silent_worker_are_told_before_the_system_has_ended_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that waits for its device cannot be ended at once."""
    child, now = DyingChild(close_fails=True), 0.0
    child.kill = lambda: None  # type: ignore[method-assign]
    monkeypatch.setattr("engine.fleet.handle.time.monotonic", lambda: now)
    handle = WorkerHandle(child, Ready(("embedding",), None, 1, 1), silence_seconds=20.0)  # type: ignore[arg-type]
    calling = asyncio.create_task(only(handle.run(EmbeddingRequest(id="1", model="wedged", inputs=("x",))), Embedded))
    await child.told.wait()
    while now < 100 and handle.active:
        now += 5.0
        handle.watch()
        await asyncio.sleep(0)
    with pytest.raises(WorkerLost, match="said nothing for 20 s"):
        await asyncio.wait_for(calling, 5)
    assert child.sent.count(Ping()) == 1
    handle._reader.cancel()
    await asyncio.gather(handle._reader, return_exceptions=True)


def test_a_process_that_takes_its_time_to_end_by_itself_keeps_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(child: FakeChild) -> None:
        child.hang_up()
        machine.loop.call_later(4.0, child.crash)

    monkeypatch.setattr("engine.fleet.starting.Child", FakeChildren(begin))
    start = start_worker("none", WorkerConfig(model="m", path=b"m"), timeout_seconds=60.0)
    with contextlib.closing(VirtualTime()) as machine, pytest.raises(EndedWhileLoading, match="exit code 3"):
        machine.run(start)


async def test_a_request_that_is_too_large_leaves_nothing_at_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    child = DyingChild(close_fails=True)

    async def send(message: msgspec.Struct) -> None:
        child.sent.append(message)
        raise PayloadTooLarge("too much")

    monkeypatch.setattr(child, "send", send)
    handle = WorkerHandle(child, Ready(("embedding",), None, 1, 1))  # type: ignore[arg-type]
    request = EmbeddingRequest(id="1", model="m", inputs=("x",))
    with pytest.raises(PayloadTooLarge):
        await only(handle.run(request), Embedded)
    assert child.sent == [request], "no cancel of what it never got"
    assert (handle.active, handle.alive) == (0, True)
    handle._reader.cancel()
    await asyncio.gather(handle._reader, return_exceptions=True)
