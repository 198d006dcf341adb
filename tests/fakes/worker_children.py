"""Fake worker processes: they replace `duet.supervise.child.Child`, and speak the protocol as the test tells them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import msgspec

from duet.channel import ChannelClosed
from duet.wire import Usage
from engine.fleet.protocol import Cancel, EventFrame, FreeMemory, LoadFailed, Ping, Pong, Ready
from engine.types import EmbeddingRequest, Finished, GenerationRequest, MemoryReport
from engine.worker_config import WorkerConfig

NO_PROCESS = 1 << 23
"""No system gives a process an id this large."""
STOP_SECONDS = 1.0


class FakeChild:
    """One process. `config` is what it was told to be. `live` are the requests that it has and has neither answered nor been told
    to cancel. `freed` counts how often it was asked to free memory."""

    def __init__(self, name: str, pid: int) -> None:
        self.name, self.pid = name, pid
        self.config: WorkerConfig | None = None
        self.channel = self
        self.live: dict[str, GenerationRequest | EmbeddingRequest] = {}
        self.loaded = self.deaf = self.stopping = self.reported = False
        self.resident_bytes = self.freed = 0
        self.on_request: Callable[[FakeChild, str], None] = lambda child, name: None
        self.on_told: Callable[[FakeChild], None] = lambda child: None
        self.before_stop: Callable[[FakeChild], None] = lambda child: None
        self.returncode: int | None = None
        self._ended = asyncio.Event()
        self._said: asyncio.Queue[msgspec.Struct | None] = asyncio.Queue()

    @property
    def model(self) -> str:
        return self.config.model if self.config is not None else ""

    # What the test has it do -----------------------------------------------------------------------------------------

    def ready(self) -> None:
        self.loaded = True
        self.say(Ready(("chat",), 4096, 1, 1))

    def fail_to_load(self) -> None:
        self.say(LoadFailed("the weights are cut short"))

    def crash(self) -> None:
        self.end(3)

    def hang_up(self) -> None:
        """Close the channel while the process lives on."""
        self._said.put_nowait(None)

    def say(self, message: msgspec.Struct) -> None:
        self._said.put_nowait(message)

    def finish(self, name: str) -> None:
        """End a request well."""
        del self.live[name]
        self.say(EventFrame([Finished(name, "stop", Usage(1, 1, 0))]))

    def report(self, resident_bytes: int) -> None:
        self.resident_bytes, self.reported = resident_bytes, True
        self.say(MemoryReport(footprint_bytes=resident_bytes))

    def end(self, code: int) -> None:
        if self.returncode is None:
            self.returncode, self.resident_bytes = code, 0
            self._ended.set()
            self._said.put_nowait(None)

    # `Child` and its channel -----------------------------------------------------------------------------------------

    async def send(self, message: msgspec.Struct) -> None:
        if self.returncode is not None:
            raise ChannelClosed
        if isinstance(message, WorkerConfig):
            assert self.config is None
            self.config = message
            self.on_told(self)
        elif isinstance(message, GenerationRequest | EmbeddingRequest):
            assert message.id not in self.live
            self.live[message.id] = message
            self.on_request(self, message.id)
        elif isinstance(message, Cancel):
            self.live.pop(message.id, None)
        elif isinstance(message, FreeMemory):
            self.freed += 1
        elif isinstance(message, Ping) and not self.deaf:
            self.say(Pong())

    async def receive(self) -> msgspec.Struct:
        message = await self._said.get()
        if message is None:
            raise ChannelClosed
        return message

    async def forward(self, take: Callable[[Any], None]) -> NoReturn:
        while True:
            take(await self.receive())

    async def close(self) -> None:
        """There is no socket to close."""

    def kill(self) -> None:
        self.end(-9)

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    async def stop(self, grace_seconds: float = 5.0) -> int:
        if self.returncode is None:
            self.before_stop(self)
            self.stopping = True
            try:
                async with asyncio.timeout(min(STOP_SECONDS, grace_seconds)):
                    await self._ended.wait()
            except TimeoutError:
                self.end(0)
            except asyncio.CancelledError:
                self.kill()
                raise
        return await self.wait()


class FakeChildren:
    """Replaces the class `Child`. `all` are the children ever started; `on_told` is called with each when it is told what
    to be."""

    def __init__(self, on_told: Callable[[FakeChild], None]) -> None:
        self.all: list[FakeChild] = []
        self._on_told = on_told

    async def start(self, module: str, arguments: Sequence[str], incoming: Any, **named: Any) -> FakeChild:
        assert not arguments
        child = FakeChild(named["name"], NO_PROCESS + len(self.all))
        child.on_told = self._on_told
        self.all.append(child)
        return child

    @property
    def living(self) -> list[FakeChild]:
        return [child for child in self.all if child.returncode is None]
