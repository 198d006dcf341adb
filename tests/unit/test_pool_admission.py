"""Loads that wait for memory: which is next, which may go first, and when a wait ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from duet.errors import MemoryFull
from duet.settings import EngineSettings
from engine.pool import admission
from engine.pool.admission import Admission
from engine.pool.ledger import Entry, Wanted
from engine.presets import PRESETS
from engine.pressure import Reading

GB = 10**9


class Book:
    """Replaces the slots: ten gigabytes for models, whose entries the test changes."""

    def __init__(self, *entries: Entry, available_bytes: int = 60 * GB, wait_seconds: float = 0.0) -> None:
        self.entries = {entry.model: entry for entry in entries}
        self.reading = Reading(64 * GB, available_bytes)
        self.evicted: list[str] = []
        self.admitted: list[str] = []
        settings = EngineSettings(
            memory_limit_bytes=10 * GB, memory_wait_seconds=wait_seconds, minimum_residency_seconds=0.0
        )
        self.admission = Admission(
            settings,
            PRESETS["64gb"],
            probe=lambda: self.reading,
            entries=lambda: [*self.entries.values()],
            resident_bytes=lambda: 0,
            evict=self.evict,
        )

    def evict(self, model: str) -> None:
        self.evicted.append(model)
        self.entries[model] = replace(self.entries[model], moving=True, leaving=True)

    def load(self, model: str, gigabytes: int) -> asyncio.Task[None]:
        def reserve() -> None:
            self.admitted.append(model)
            self.entries[model] = entry(model, gigabytes, users=1)

        wanted = Wanted(model, gigabytes * GB)
        return asyncio.create_task(
            self.admission.admit(wanted, reserve=reserve, report_wait=lambda _: None, is_wanted=lambda: True)
        )


def entry(model: str, gigabytes: int, **fields: object) -> Entry:
    return replace(Entry(model, gigabytes * GB), **fields)  # type: ignore[arg-type]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.002)


async def test_a_newcomer_does_not_take_what_was_unloaded_for_another_load() -> None:
    book = Book(entry("old", 8))
    first = book.load("first", 9)
    await until(lambda: book.evicted == ["old"])
    del book.entries["old"]  # the newcomer sees this before the first load decides again
    with pytest.raises(MemoryFull, match="first"):
        await book.load("newcomer", 5)
    book.admission.note_change()
    await first
    assert book.admitted == ["first"]


async def test_a_small_load_goes_before_one_that_waits_when_that_takes_nothing_from_it() -> None:
    book = Book(entry("busy", 7, users=1), wait_seconds=20.0)
    first = book.load("first", 6)
    await until(lambda: book.admission.waiting == 1)
    await book.load("small", 3)
    second = book.load("second", 1)
    await until(lambda: book.admission.waiting == 2)
    book.entries["busy"] = entry("busy", 7)
    book.admission.note_change()
    await until(lambda: book.evicted == ["busy"])
    del book.entries["busy"]
    book.admission.note_change()
    await asyncio.gather(first, second)
    assert book.admitted == ["small", "first", "second"]


async def test_no_other_model_is_unloaded_while_enough_is_leaving() -> None:
    book = Book(entry("a", 5), entry("b", 5))
    load = book.load("first", 5)
    await until(lambda: len(book.evicted) == 1)
    looks = 0

    def look() -> Reading:
        nonlocal looks
        looks += 1
        return book.reading

    book.admission._probe = look
    for count in range(1, 4):
        book.admission.note_change()
        await until(lambda count=count: looks >= count)  # type: ignore[misc]
    assert len(book.evicted) == 1
    del book.entries[book.evicted[0]]
    book.admission.note_change()
    await load


async def test_a_wait_ends_however_many_models_are_unloaded_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "EVICTION_SECONDS", 0.3)
    book = Book(entry("idle 0", 8))

    def evict(model: str) -> None:
        """Whenever a model goes, another one comes."""
        book.evicted.append(model)
        del book.entries[model]
        another = f"idle {len(book.evicted)}"
        book.entries[another] = entry(another, 8)
        asyncio.get_running_loop().call_soon(book.admission.note_change)

    book.admission._evict = evict
    async with asyncio.timeout(5):
        with pytest.raises(MemoryFull):
            await book.load("first", 5)
    assert book.admission.waiting == 0


async def test_samples_at_the_same_time_lose_no_reading() -> None:
    """The first sample reads much swap and is slow. The second reads little meanwhile."""
    book = Book()
    slow, second = threading.Event(), threading.Event()
    readings = [replace(book.reading, swap_used_bytes=5 * GB), replace(book.reading, swap_used_bytes=GB)]

    def probe() -> Reading:
        reading = readings.pop(0)
        if not readings:
            return reading
        second.set()
        assert slow.wait(10)
        return reading

    book.admission._probe = probe
    first = asyncio.create_task(book.admission.sample())
    await asyncio.to_thread(second.wait, 10)
    await book.admission.sample()
    slow.set()
    await first
    assert book.admission.outlook is not None
    assert book.admission.outlook.swapped_bytes == 4 * GB


async def test_memory_is_read_however_many_threads_are_busy_with_other_things() -> None:
    book, end = Book(), threading.Event()
    busy = [asyncio.create_task(asyncio.to_thread(end.wait, 20)) for _ in range(40)]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await book.admission.sample()
    assert book.admission.outlook is not None
    end.set()
    await asyncio.gather(*busy)
