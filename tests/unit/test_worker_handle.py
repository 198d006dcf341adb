"""What callers of a worker see when it dies, whatever its channel does then."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from duet.channel import ChannelClosed
from duet.errors import WorkerLost
from engine.types import EmbeddingRequest
from engine.workers.handle import WorkerHandle
from engine.workers.protocol import Ready


class DyingChild:
    """A process that dies when `died` is set, with a channel that cannot be closed in order."""

    name, pid = "worker:dying", 1

    def __init__(self, *, close_fails: bool) -> None:
        self.channel = self
        self.died, self.told = asyncio.Event(), asyncio.Event()
        self._close_fails = close_fails

    async def send(self, message: msgspec.Struct) -> None:
        self.told.set()

    async def receive(self) -> msgspec.Struct:
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
    calling = asyncio.create_task(handle.call(EmbeddingRequest(id="1", model="dying", inputs=("x",))))
    await child.told.wait()
    child.died.set()
    with pytest.raises(WorkerLost):
        await asyncio.wait_for(calling, 5)
    handle._reader.cancel()
    await asyncio.gather(handle._reader, return_exceptions=True)
