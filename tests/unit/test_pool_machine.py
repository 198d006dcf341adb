"""The pool under any order of events (hypothesis): the real one, with fake processes, memory and time."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from duet.errors import DuetError, ModelNotFound
from duet.settings import EngineSettings, Settings
from duet.wire import Usage
from engine.cards import Card
from engine.fleet.protocol import EventFrame
from engine.folders.inspection import Inspection
from engine.pool.ledger import estimate
from engine.pool.pool import Pool
from engine.pressure import Pressure, Reading
from engine.types import (
    Accepted,
    Embedded,
    EmbeddingRequest,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Message,
    Part,
    TextDelta,
    only,
)
from tests.examples import examples
from tests.fakes.virtual_time import Inline, VirtualTime
from tests.fakes.worker_children import FakeChild, FakeChildren

GB = 10**9
TOTAL, RESERVE, LIMIT = 16 * GB, GB, 10 * GB
SIZES = {"small": GB, "middle": 3 * GB, "large": 6 * GB, "other": 5 * GB, "giant": 20 * GB}
NAMES = [*SIZES, "owner/far", "owner/nothing"]
SILENCE_SECONDS = 20.0
PICK = st.integers(0, 99)


class Shelf:
    """Replaces the catalogue."""

    preset = "64gb"

    def __init__(self) -> None:
        self.cards = {
            name: Card(name, roles=("embedding",), path=Path(name), bytes_on_disk=size, memory_bytes=size)
            for name, size in SIZES.items()
        }
        self.cards["small"] = Card(
            "small", roles=("embedding",), path=Path("small"), bytes_on_disk=GB, memory_bytes=GB, ttl_seconds=20.0
        )

    def known(self) -> list[Card]:
        return [*self.cards.values()]

    async def refresh(self, *, at_once: bool = False) -> None:
        """What is here does not change."""

    async def find(self, name: str) -> Card:
        return self.resolve(name)

    def resolve(self, name: str) -> Card:
        return self.cards.get(name) or Card(name, roles=("embedding",), repo=name)


class Hub:
    """Replaces the downloads: it has one repo, whose files arrive after 30 s."""

    async def fetch(self, repo: str, revision: str | None = None, *, on_progress: Any = None) -> Path:
        await asyncio.sleep(30.0)
        if repo != "owner/far":
            raise ModelNotFound(f"the hub has no model {repo}", param="model")
        return Path(repo)


class Asked:
    """One request, and every end it had: there must be one."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.task: asyncio.Task[None]

    async def run(self, work: Any) -> None:
        try:
            await work(self.ends)
        except DuetError as error:
            self.ends.append(error.code)
        except asyncio.CancelledError:
            self.ends.append("cancelled")


class Machine(RuleBasedStateMachine):
    """Clients, workers, other programs and operators do anything in any order; the pool keeps its promises."""

    def __init__(self) -> None:
        super().__init__()
        self.time = VirtualTime()
        self.folder = tempfile.TemporaryDirectory()
        engine = EngineSettings(
            memory_limit_bytes=LIMIT, memory_reserve_bytes=RESERVE, kv_ram_bytes=0, warm_spare=False, resident=(),
            minimum_residency_seconds=15.0, memory_wait_seconds=20.0, idle_unload_seconds=600.0,
            worker_silence_seconds=SILENCE_SECONDS, load_timeout_seconds=40.0,
        )  # fmt: skip
        self.others, self.pressure = 2 * GB, "normal"
        self.children = FakeChildren(self.check_admission)
        self.asked: dict[str, Asked] = {}
        self.next_load = "ready"
        self.forced: str | None = None
        self.closing = False
        self.numbers = itertools.count()
        shelf: Any = Shelf()
        hub: Any = Hub()
        self.patches = [
            mock.patch("engine.fleet.starting.Child", self.children),
            mock.patch("engine.pool.fetch.inspect", lambda folder, name: Inspection(("embedding",), 2 * GB)),
        ]
        for patch in self.patches:
            patch.start()
        self.pool = Pool(Settings(home=Path(self.folder.name), engine=engine), shelf, hub, probe=self.probe)
        self.residency = self.pool._residency
        self.residency.admission._threads = Inline()
        self.time.run(self.pool.open())

    def probe(self) -> Reading:
        held = sum(child.resident_bytes for child in self.children.living)
        pressure: Pressure = self.pressure  # type: ignore[assignment]
        return Reading(TOTAL, max(0, TOTAL - self.others - held), pressure=pressure)

    # Clients ---------------------------------------------------------------------------------------------------------

    @rule(
        models=st.lists(st.sampled_from([*SIZES, *NAMES]), min_size=1, max_size=3),
        kind=st.sampled_from(["generate", "generate", "embed", "load"]),
        seconds=st.sampled_from([0.0, 3.0, 3.0, 40.0]),
    )
    def ask(self, models: list[str], kind: str, seconds: float) -> None:
        for model in models:
            self.ask_one(model, kind)
        self.time_passes(seconds)

    def ask_one(self, model: str, kind: str) -> None:
        name = f"r{next(self.numbers)}"

        async def generate(ends: list[str]) -> None:
            messages = (Message("user", (Part("text", "hello"),)),)
            async for event in self.pool.run(GenerationRequest(id=name, model=model, messages=messages)):
                assert not ends, "an event after the end"
                if isinstance(event, Finished | Failed):
                    ends.append(type(event).__name__)

        async def embed(ends: list[str]) -> None:
            await only(self.pool.run(EmbeddingRequest(id=name, model=model, inputs=("hello",))), Embedded)
            ends.append("result")

        async def load(ends: list[str]) -> None:
            await self.pool.load(model)
            ends.append("loaded")

        asked = self.asked[name] = Asked()
        work = {"generate": generate, "embed": embed, "load": load}[kind]

        async def begin() -> None:
            asked.task = asyncio.create_task(asked.run(work))

        self.time.run(begin())

    @precondition(lambda self: self.under_way())
    @rule(pick=PICK)
    def leave(self, pick: int) -> None:
        waiting = self.under_way()
        self.do(waiting[pick % len(waiting)].task.cancel)

    # Workers ---------------------------------------------------------------------------------------------------------

    @rule(ends=st.sampled_from(["fail_to_load", "crash", "hang"]))
    def the_next_load_ends_badly(self, ends: str) -> None:
        self.next_load = ends

    @precondition(lambda self: self.live())
    @rule()
    def workers_finish(self) -> None:
        while live := self.live():
            self.answer(*live[0], "finish")

    @precondition(lambda self: self.live())
    @rule(pick=PICK, what=st.sampled_from(["accept", "token", "finish", "finish", "fail"]))
    def a_worker_speaks(self, pick: int, what: str) -> None:
        self.answer(*self.live()[pick % len(self.live())], what)

    def answer(self, child: FakeChild, name: str, what: str) -> None:
        failed = Failed(name, "internal_error", "the model failed on this request")
        if isinstance(child.live[name], EmbeddingRequest):
            events: dict[str, Event] = {"finish": Embedded(name, b"", 0, 1), "fail": failed}
        else:
            done = Finished(name, "stop", Usage(1, 1, 0))
            events = {"accept": Accepted(name, 1), "token": TextDelta(name, "x"), "finish": done, "fail": failed}
        if what in ("finish", "fail"):
            del child.live[name]
        if what in events:
            self.do(lambda: child.say(EventFrame([events[what]])))

    @precondition(lambda self: self.settled())
    @rule(pick=PICK, gigabytes=st.integers(0, 12), seconds=st.sampled_from([0.0, 80.0]))
    def a_worker_reports_its_memory(self, pick: int, gigabytes: int, seconds: float) -> None:
        child = self.settled()[pick % len(self.settled())]
        self.do(lambda: child.report(gigabytes * GB))
        self.time_passes(seconds)

    @precondition(lambda self: self.children.living)
    @rule(pick=PICK)
    def a_worker_dies(self, pick: int) -> None:
        living = self.children.living
        self.do(lambda: living[pick % len(living)].end(-11))

    @precondition(lambda self: self.settled())
    @rule(pick=PICK, seconds=st.sampled_from([0.0, 80.0]))
    def a_worker_hangs(self, pick: int, seconds: float) -> None:
        child = self.settled()[pick % len(self.settled())]
        child.deaf = True
        self.ask_one(child.model, "generate")
        self.time_passes(seconds)

    # Machine and operators -------------------------------------------------------------------------------------------

    @rule(
        gigabytes=st.integers(0, 12), pressure=st.sampled_from(["normal", "warning", "critical"]),
        seconds=st.sampled_from([3.0, 30.0]), stays=st.booleans(),
    )  # fmt: skip
    def other_programs(self, gigabytes: int, pressure: str, seconds: float, stays: bool) -> None:
        self.others, self.pressure = gigabytes * GB, pressure
        self.time_passes(seconds)
        if not stays:
            self.others, self.pressure = 2 * GB, "normal"

    @rule(seconds=st.sampled_from([0.5, 3.0, 20.0, 80.0]))
    def time_passes(self, seconds: float) -> None:
        self.time.run(asyncio.sleep(seconds))
        if seconds == 80.0:  # every timeout is over
            assert not any(child.deaf and child.live for child in self.settled()), (
                "a silent worker is waited for without end"
            )
            entries = self.residency.entries()
            idle = [entry for entry in entries if not (entry.users or entry.moving or entry.pinned)]
            assert not idle or sum(entry.bytes for entry in entries) <= LIMIT, "charges stay above the limit"

    @rule(model=st.sampled_from(NAMES), action=st.sampled_from(["pin", "unpin", "unpin", "unload", "force"]))
    def operate(self, model: str, action: str) -> None:
        if action in ("pin", "unpin"):
            self.do(lambda: self.pool.pin(model, action == "pin"))
        else:
            self.unload(model, force=action == "force")

    def unload(self, model: str, *, force: bool) -> None:
        users = self.users(model)
        self.forced = model if force else None

        async def unload() -> None:
            async with asyncio.timeout(100):
                await self.pool.unload(model, force=force)

        try:
            self.time.run(unload())
        except DuetError as error:
            assert (error.code, force) == ("conflict", False)
            assert users
        else:
            assert force or not users
        self.forced = None

    # State -----------------------------------------------------------------------------------------------------------

    def do(self, act: Callable[[], object]) -> None:
        async def acting() -> None:
            act()

        self.time.run(acting())

    def under_way(self) -> list[Asked]:
        return [asked for asked in self.asked.values() if not asked.task.done()]

    def settled(self) -> list[FakeChild]:
        return [child for child in self.children.living if child.loaded and not child.stopping]

    def live(self) -> list[tuple[FakeChild, str]]:
        return [(child, name) for child in self.settled() if not child.deaf for name in child.live]

    def users(self, model: str) -> int:
        slot = self.residency.slots.get(model)
        return slot.users if slot is not None else 0

    # Invariants ------------------------------------------------------------------------------------------------------

    def check_admission(self, child: FakeChild) -> None:
        """Called when a process is told what to be: its model has just been reserved in the ledger."""
        child.before_stop = self.check_stop
        if self.next_load != "hang":
            asyncio.get_running_loop().call_later(1.0, getattr(child, self.next_load))
        self.next_load = "ready"
        assert not self.closing
        assert sum(entry.bytes for entry in self.residency.entries()) <= self.residency.admission.limit().bytes
        assert [other for other in self.children.living if other.model == child.model] == [child]

    def check_stop(self, child: FakeChild) -> None:
        assert not child.live or self.closing or self.forced == child.model, "a model in use is unloaded"

    @invariant()
    def every_request_ends_once(self) -> None:
        for asked in self.asked.values():
            assert len(asked.ends) == asked.task.done(), asked.ends
            if asked.task.done():
                asked.task.result()
        waiting = len(self.under_way())
        assert self.residency._under_way == waiting
        assert sum(slot.users for slot in self.residency.slots.values()) == waiting
        for child in self.settled():
            for name in child.live:
                assert not self.asked[name].task.done(), "a worker works for a request that has ended"

    @invariant()
    def the_ledger_is_what_processes_hold(self) -> None:
        charged = {entry.model: entry.bytes for entry in self.residency.entries()}
        held = {}
        for child in self.children.living:
            size = SIZES.get(child.model, 2 * GB)
            held[child.model] = child.resident_bytes if child.reported else estimate(size, 0)
        assert charged == held
        slots = self.residency.slots.values()
        assert {slot.process for slot in slots if slot.process} == {child.pid for child in self.children.living}

    @invariant()
    def no_slot_is_kept_without_a_reason(self) -> None:
        for slot in self.residency.slots.values():
            assert not slot.forgettable
        nothing = self.residency.slots.get("owner/nothing")
        assert nothing is None or nothing.loading or nothing.pinned != "no"

    def teardown(self) -> None:
        """After `close` every request has ended, and nothing is left."""
        self.closing = True
        self.time.run(self.pool.close())
        self.every_request_ends_once()
        assert not self.under_way()
        assert self.children.living == []
        assert self.residency.entries() == []
        assert asyncio.all_tasks(self.time.loop) == set()
        for patch in self.patches:
            patch.stop()
        self.time.close()
        self.folder.cleanup()


Machine.TestCase.settings = settings(max_examples=examples(80), stateful_step_count=50)
# 80 examples of up to 50 steps, each with a pool of its own.
test_whatever_happens_the_pool_keeps_its_promises = pytest.mark.cpu_seconds(20)(Machine.TestCase)
