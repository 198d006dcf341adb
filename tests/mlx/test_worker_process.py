"""The worker as a process: what the gateway sees at start, at work, and at every kind of end."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from duet.supervise.child import Child
from engine.fleet.protocol import Cancel, EventFrame, FromWorker, LoadFailed, Ready, Shutdown
from engine.pressure import footprint_bytes, rss_bytes
from engine.types import Accepted, BatchReport, Failed, Finished, MemoryReport, TextDelta
from engine.worker_config import BatchLimits, WorkerConfig
from tests.mlx.conftest import ask, words


@asynccontextmanager
async def worker(folder: Path) -> AsyncIterator[Child[Any]]:
    async with process() as child:
        await child.channel.send(WorkerConfig(model="tiny", path=os.fsencode(folder)))
        yield child


@asynccontextmanager
async def process() -> AsyncIterator[Child[Any]]:
    """A worker that was not yet told what to be: a spare."""
    child: Child[Any] = await Child.start("engine.worker", (), FromWorker, name="worker")
    try:
        yield child
    finally:
        await child.stop()


async def said(child: Child[Any]) -> Any:
    """The next message that is not a report on memory."""
    while isinstance(message := await child.channel.receive(), MemoryReport | BatchReport):
        continue
    return message


async def events_of(child: Child[Any], request_id: str) -> list[Any]:
    """Events of one request until it ends."""
    found: list[Any] = []
    while not (found and isinstance(found[-1], Finished | Failed)):
        message = await said(child)
        assert isinstance(message, EventFrame)
        found += [event for event in message.events if event.id == request_id]
    return found


async def test_a_worker_loads_answers_cancels_and_ends_with_its_gateway(checkpoint: Callable[..., Path]) -> None:
    async with worker(checkpoint("plain")) as child:
        ready = await child.channel.receive()
        assert ready == Ready(("chat",), 4096, (checkpoint("plain") / "model.safetensors").stat().st_size, 320)
        await child.channel.send(ask("long", words(20, 1), tokens=4000))
        await child.channel.send(ask("a", "hello", tokens=5))
        events = await events_of(child, "a")
        assert [type(event) for event in events] == [Accepted, *[TextDelta] * 5, Finished]
        await child.channel.send(Cancel("long"))
        await child.channel.send(ask("b", "hello", tokens=5))
        again = await events_of(child, "b")
        assert [event.text for event in again[1:]] == [event.text for event in events[1:]]
        await child.channel.close()
        assert await asyncio.wait_for(child.wait(), 60) == 0


@pytest.mark.parametrize("by", ["message", "signal"])
async def test_shutdown_ends_a_busy_worker_cleanly(checkpoint: Callable[..., Path], by: str) -> None:
    async with worker(checkpoint("plain")) as child:
        await child.channel.receive()
        await child.channel.send(ask("long", words(20, 1), tokens=4000))
        if by == "message":
            await child.channel.send(Shutdown())
        else:
            os.kill(child.pid, signal.SIGTERM)
        assert await asyncio.wait_for(child.wait(), 60) == 0


async def test_a_worker_says_what_it_holds_once_it_is_loaded(checkpoint: Callable[..., Path]) -> None:
    async with worker(checkpoint("plain")) as child:
        assert isinstance(await child.channel.receive(), Ready)
        report = await child.channel.receive()
        assert isinstance(report, MemoryReport)
        weights = (checkpoint("plain") / "model.safetensors").stat().st_size
        assert report.active_bytes >= weights * 0.9
        assert report.resident_bytes >= report.footprint_bytes > weights
        if sys.platform == "linux":
            assert abs(report.footprint_bytes - rss_bytes(child.pid)) < 64 << 20


async def test_a_spare_that_waited_becomes_the_worker_that_it_is_told_to_be(checkpoint: Callable[..., Path]) -> None:
    async with process() as child:
        async with asyncio.timeout(60):
            while footprint_bytes(child.pid) < 64 << 20:  # Python alone takes less: the libraries come in
                await asyncio.sleep(0.05)
        await child.channel.send(WorkerConfig(model="tiny", path=os.fsencode(checkpoint("plain"))))
        assert isinstance(await child.channel.receive(), Ready)
        await child.channel.send(ask("a", "hello", tokens=5))
        assert [type(event) for event in await events_of(child, "a")] == [Accepted, *[TextDelta] * 5, Finished]
        await child.channel.close()
        assert await asyncio.wait_for(child.wait(), 60) == 0


async def test_a_spare_ends_with_its_gateway() -> None:
    async with process() as child:
        await child.channel.close()
        assert await asyncio.wait_for(child.wait(), 60) == 0


async def test_a_worker_ends_when_its_gateway_goes_while_it_loads(checkpoint: Callable[..., Path]) -> None:
    async with process() as child:
        await child.channel.send(WorkerConfig(model="tiny", path=os.fsencode(checkpoint("plain"))))
        await child.channel.close()
        assert await asyncio.wait_for(child.wait(), 60) == 0


@pytest.mark.parametrize(
    ("first", "cause"),
    [
        (WorkerConfig(model="tiny", path=b"m", batch=BatchLimits(max_rows=0)), "$.batch.max_rows"),
        (WorkerConfig(model="tiny", path=b"m", role="king"), "$.role"),  # type: ignore[arg-type]
        (Shutdown(), "Shutdown came first"),
    ],
)
async def test_a_worker_that_cannot_read_what_to_be_says_so_and_ends(first: msgspec.Struct, cause: str) -> None:
    async with process() as child:
        await child.channel.send(first)
        failed = await child.channel.receive()
        assert isinstance(failed, LoadFailed)
        assert cause in failed.message
        assert await asyncio.wait_for(child.wait(), 60) == 1


@pytest.mark.parametrize(("content", "said"), [("no folder", "No such file"), ("no weights", "safetensors")])
async def test_a_worker_that_cannot_load_says_why_and_ends(tmp_path: Path, content: str, said: str) -> None:
    if content == "no weights":
        (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    async with worker(tmp_path if content == "no weights" else tmp_path / "absent") as child:
        failed = await child.channel.receive()
        assert isinstance(failed, LoadFailed)
        assert said in failed.message
        assert await asyncio.wait_for(child.wait(), 60) == 1


class Unknown(msgspec.Struct, tag="unknown"):
    """No message of the protocol."""


async def test_a_message_that_cannot_be_read_fails_live_requests_and_ends_the_worker(
    checkpoint: Callable[..., Path],
) -> None:
    async with worker(checkpoint("plain")) as child:
        await child.channel.receive()
        await child.channel.send(ask("live", words(20, 1), tokens=4000))
        while True:
            message = await said(child)
            if any(isinstance(event, Accepted) for event in message.events):
                break
        await child.channel.send(Unknown())
        *_, end = await events_of(child, "live")
        assert isinstance(end, Failed)
        assert end.code == "worker_lost"
        assert await asyncio.wait_for(child.wait(), 60) == 1


async def test_half_a_frame_and_a_closed_channel_end_the_worker(checkpoint: Callable[..., Path]) -> None:
    async with worker(checkpoint("plain")) as child:
        await child.channel.receive()
        assert child.channel._transport is not None
        child.channel._transport.write(struct.pack(">I", 100) + b"half")
        await child.channel.close()
        assert await asyncio.wait_for(child.wait(), 60) == 0
