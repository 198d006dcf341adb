"""The real pool over fake worker processes, in virtual time: its decisions without the waiting."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from duet.errors import DuetError
from engine.catalogue import Catalogue
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
    """Made by `virtual_pool`. A test may change `machine` at any time. `resident_bytes` is what a model's worker reports
    once it is loaded. `load_ends` names the method of `FakeChild` that ends a model's load, if not `ready`."""

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
        """Begin a request. Its worker answers it at once, or never if it `stays`. Returns before the request has a worker."""
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
        """Make a request and wait for its answer. Raises what the request raises."""
        asked = self.ask(model)
        self.until(asked.task.done)
        if asked.error is not None:
            raise asked.error

    def busy(self, model: str) -> Asked:
        """Begin a request that never ends, and wait until its worker has it."""
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

    # State -----------------------------------------------------------------------------------------------------------

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
    """A pool over model folders of these names. A load takes a second, and a model takes `ledger.WORKER_BYTES`."""
    for name in names:
        model_folder(home / "models", name)
    house = VirtualPool(home, machine or FakeMachine(), **engine)
    with mock.patch("engine.fleet.starting.Child", house.children):
        house.open()
        try:
            yield house
        finally:
            house.close()
