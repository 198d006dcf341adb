"""The real pool over worker processes that are none, in virtual time: what it decides, without waiting for it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from duet.errors import DuetError
from engine.cards import Catalogue
from engine.downloads import Downloads
from engine.pool.pool import Pool
from engine.types import Failed, GenerationRequest, Message, Part, Placement, PoolStatus
from tests.fakes.engine_service import FakeMachine, make_settings, model_folder
from tests.fakes.virtual_time import Inline, VirtualTime
from tests.fakes.worker_children import FakeChild, FakeChildren

LOAD_SECONDS = 1.0


class Asked:
    """One request. `error` is how it failed, None while it runs and when it succeeded."""

    def __init__(self) -> None:
        self.error: DuetError | None = None
        self.task: asyncio.Task[None]


class VirtualPool:
    """`machine` may be changed meanwhile. `resident_bytes` is what a model's worker reports once it is loaded, `load_ends` how
    its load ends unless well (a method of `FakeChild`). Made by `virtual_pool`."""

    def __init__(self, home: Path, machine: FakeMachine, **engine: Any) -> None:
        self.models, self.machine = home / "models", machine
        self.resident_bytes: dict[str, int] = {}
        self.load_ends: dict[str, str] = {}
        self.children = FakeChildren(self._on_told)
        self._time, self._numbers = VirtualTime(), itertools.count()
        self._stays: set[str] = set()
        settings = make_settings(home, self.models, **engine)
        downloads = Downloads(home / "hub", "http://127.0.0.1:9")
        catalogue = Catalogue(settings, downloads, memory_bytes=machine.reading.total_bytes)
        self.pool = Pool(settings, catalogue, downloads, probe=machine)
        self.pool._residency.admission._threads = Inline()

    # Requests --------------------------------------------------------------------------------------------------------

    def ask(self, model: str, *, stays: bool = False) -> Asked:
        """A request, which its worker answers at once, or never if it `stays`. Returns before it has a worker."""
        name, asked = f"r{next(self._numbers)}", Asked()
        if stays:
            self._stays.add(name)
        request = GenerationRequest(id=name, model=model, messages=(Message("user", (Part("text", "hello"),)),))

        async def work() -> None:
            try:
                async for event in self.pool.run(request):
                    assert not isinstance(event, Failed), event
            except DuetError as error:
                asked.error = error

        async def begin() -> None:
            asked.task = asyncio.create_task(work())

        self._time.run(begin())
        return asked

    def chat(self, model: str) -> None:
        """A request and its answer. Raises what the request raises."""
        asked = self.ask(model)
        self.until(asked.task.done)
        if asked.error is not None:
            raise asked.error

    def busy(self, model: str) -> Asked:
        """A request that its worker has and does not answer."""
        before = len(self._live(model))
        asked = self.ask(model, stays=True)
        self.until(lambda: len(self._live(model)) > before)
        return asked

    def leave(self, asked: Asked) -> None:
        self.do(asked.task.cancel)

    def _live(self, model: str) -> list[str]:
        return [name for child in self.children.living if child.model == model for name in child.live]

    # Time and operators ----------------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        self._time.run(asyncio.sleep(seconds))

    def until(self, holds: Callable[[], bool], seconds: float = 600.0) -> None:
        async def waiting() -> None:
            async with asyncio.timeout(seconds):
                while not holds():
                    await asyncio.sleep(0.05)

        self._time.run(waiting())

    def do(self, act: Callable[[], object]) -> None:
        async def acting() -> None:
            act()

        self._time.run(acting())

    def pin(self, model: str, pinned: bool = True) -> None:
        self.do(lambda: self.pool.pin(model, pinned))

    def load(self, model: str) -> None:
        self._time.run(self.pool.load(model))

    def unload(self, model: str) -> None:
        self._time.run(self.pool.unload(model))

    # What is so ------------------------------------------------------------------------------------------------------

    @property
    def status(self) -> PoolStatus:
        return self.pool.pool()

    @property
    def loaded(self) -> set[str]:
        return {place.id for place in self.status.models if place.state == "loaded"}

    def placement(self, model: str) -> Placement:
        return self.pool.placement(model)

    def worker(self, model: str) -> FakeChild:
        """The model's living process."""
        (child,) = [child for child in self.children.living if child.model == model]
        return child

    def starts(self, model: str) -> int:
        """How many processes were told to be this model."""
        return sum(child.model == model for child in self.children.all)

    # Processes -------------------------------------------------------------------------------------------------------

    def _on_told(self, child: FakeChild) -> None:
        child.on_request = self._on_request
        asyncio.get_running_loop().call_later(LOAD_SECONDS, self._end_load, child)

    def _end_load(self, child: FakeChild) -> None:
        getattr(child, self.load_ends.get(child.model, "ready"))()
        if child.model in self.resident_bytes:
            child.report(self.resident_bytes[child.model])

    def _on_request(self, child: FakeChild, name: str) -> None:
        if name not in self._stays:
            child.finish(name)

    def open(self) -> None:
        self._time.run(self.pool.open())

    def close(self) -> None:
        self._time.run(self.pool.close())
        assert self.children.living == []
        assert asyncio.all_tasks(self._time.loop) == set()
        self._time.close()


@contextmanager
def virtual_pool(home: Path, *names: str, machine: FakeMachine | None = None, **engine: Any) -> Iterator[VirtualPool]:
    """With model folders of these names. Models load in a second, take `ledger.WORKER_BYTES` each, and nothing else is slow."""
    for name in names:
        model_folder(home / "models", name)
    house = VirtualPool(home, machine or FakeMachine(), **engine)
    with mock.patch("engine.fleet.starting.Child", house.children):
        house.open()
        try:
            yield house
        finally:
            house.close()
