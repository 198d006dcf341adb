"""What of memory goes to SSD, and when: with the disk's own thread and a directory, the time handed in, and no model."""

from __future__ import annotations

import hashlib
import queue
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from engine.kvstore.blobs import Tensor
from engine.kvstore.directory import Directory, Limits
from engine.kvstore.index import Entry
from engine.worker.kvcache import writeback
from engine.worker.kvcache.io_thread import IoThread
from engine.worker.kvcache.memory_tier import Kept, MemoryTier
from engine.worker.kvcache.messages import Answer, Saved
from engine.worker.kvcache.writeback import SAVES_AT_ONCE, TIP_SECONDS, Writeback

ROOMY = Limits(disk_bytes=1 << 30, write_bytes_a_day=1 << 30, free_bytes=0)
SIZE = 1000


class Tiers:
    """Memory of ten entries, the disk's thread, and what lies between them."""

    def __init__(self, folder: Path, limits: Limits = ROOMY) -> None:
        self.folder, self.answers = folder, queue.SimpleQueue[Answer]()
        self.memory = MemoryTier(10 * SIZE)
        self.io = IoThread(partial(Directory, folder, limits, {}), self.answers.put, ahead_bytes=0)
        self.writeback = Writeback(self.memory, self.io, dict)
        self.began = time.monotonic()

    def add(self, name: str, *, admitted: bool = True, tip: bool = False, size: int = SIZE) -> Kept:
        """A block that a row has computed now."""
        key = hashlib.sha256(name.encode()).digest()
        entry = Entry(key, "block", b"root", 0, 1, name.encode(), (), 0, 0.0, tip)
        content = {"k": Tensor("U8", (size,), memoryview(bytes(size)))}
        kept = Kept(entry, content, {}, dirty=True, admitted=admitted, used=self.began)
        self.writeback.add(kept)
        if admitted:
            self.writeback.schedule(kept)
        return kept

    def tend(self, after: float = 0.0) -> float | None:
        return self.writeback.tend(busy=False, now=self.began + after)

    def take_in(self, count: int) -> list[Saved]:
        """The next answers of the disk's thread, of which there must be no more."""
        found = [self.answers.get(timeout=30) for _ in range(count)]
        time.sleep(0.02)
        assert self.answers.empty()
        for answer in found:
            assert isinstance(answer, Saved)
            self.writeback.saved(answer)
        return found  # type: ignore[return-value]

    def written(self) -> set[str]:
        return {path.stem for path in self.folder.glob("files/*/*.safetensors")}

    def next_answer(self) -> Answer | None:
        return None if self.answers.empty() else self.answers.get()


@pytest.fixture
def tiers(tmp_path: Path) -> Iterator[Callable[..., Tiers]]:
    """Makes `Tiers`, whose thread ends with the test."""
    made: list[Tiers] = []

    def make(limits: Limits = ROOMY) -> Tiers:
        made.append(Tiers(tmp_path / f"kv{len(made)}", limits))
        assert made[-1].io.wait_ready(30)
        return made[-1]

    yield make
    for one in made:
        assert one.io.close(30)


def names(*entries: Kept) -> set[str]:
    return {kept.entry.key.hex() for kept in entries}


def test_an_admitted_block_is_written_and_is_clean_then(tiers: Callable[..., Tiers]) -> None:
    found = tiers()
    kept = found.add("a")
    found.tend()
    assert kept.dirty
    assert [answer.kept for answer in found.take_in(1)] == [True]
    assert not kept.dirty
    assert found.written() == names(kept)


def test_no_more_than_a_few_wait_for_the_disk_at_once(tiers: Callable[..., Tiers]) -> None:
    found = tiers()
    entries = [found.add(f"{i}") for i in range(2 * SAVES_AT_ONCE)]
    found.tend()
    found.tend()  # nothing new while these are not answered
    first = found.take_in(SAVES_AT_ONCE)
    assert {answer.key for answer in first} == {kept.entry.key for kept in entries[:SAVES_AT_ONCE]}
    found.tend()
    found.take_in(SAVES_AT_ONCE)
    assert found.written() == names(*entries)


def test_the_end_of_a_sequence_waits_until_it_was_untouched_for_long_enough(tiers: Callable[..., Tiers]) -> None:
    found = tiers()
    tip = found.add("tip", tip=True)
    assert found.tend() == pytest.approx(TIP_SECONDS)
    assert found.tend(TIP_SECONDS - 5) == pytest.approx(5)
    tip.used += 5.0  # the next turn begins with it
    assert found.tend(TIP_SECONDS) == pytest.approx(5)
    found.take_in(0)
    found.tend(TIP_SECONDS + 5)
    found.take_in(1)
    assert found.written() == names(tip)


def test_an_end_that_is_outgrown_is_never_written(tiers: Callable[..., Tiers]) -> None:
    found = tiers()
    tip = found.add("tip", tip=True)
    found.writeback.outgrown(tip.entry.key)
    assert found.tend(TIP_SECONDS) is None
    found.take_in(0)
    assert found.written() == set()


def test_what_was_wanted_once_is_written_when_it_is_wanted_again_or_at_the_end(tiers: Callable[..., Tiers]) -> None:
    found = tiers()
    again, once = found.add("again", admitted=False), found.add("once", admitted=False)
    found.tend(1000.0)
    found.take_in(0)
    found.writeback.admit(again.entry.key)
    found.writeback.admit(again.entry.key)
    found.tend()
    found.take_in(1)
    assert found.written() == names(again)
    assert found.writeback.flush(30.0, found.next_answer)
    assert found.written() == names(again, once)


def test_a_flush_writes_the_newest_first(tiers: Callable[..., Tiers]) -> None:
    found, order = tiers(), list[bytes]()
    entries = [found.add(f"{i}", admitted=False) for i in range(5)]

    def next_answer() -> Answer | None:
        answer = found.next_answer()
        if isinstance(answer, Saved):
            order.append(answer.key)
        return answer

    assert found.writeback.flush(30.0, next_answer)
    assert order == [kept.entry.key for kept in reversed(entries)]


def test_a_flush_without_time_says_that_something_is_lost(tiers: Callable[..., Tiers]) -> None:
    found = tiers()
    found.add("a", admitted=False)
    assert not found.writeback.flush(0.0, found.next_answer)
    assert found.written() == set()


def test_what_leaves_memory_is_written_first_if_it_has_earned_its_place(tiers: Callable[..., Tiers]) -> None:
    found = tiers()
    admitted, other = found.add("admitted", tip=True), found.add("other", admitted=False)
    found.writeback.shrink(0)
    found.take_in(1)
    assert found.written() == names(admitted)
    assert len(found.memory) == 0
    assert (admitted.dirty, other.dirty, found.writeback.spilled_away) == (True, True, 0)


def test_what_leaves_memory_is_lost_when_too_much_waits_for_the_disk(
    tiers: Callable[..., Tiers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writeback, "MAX_SPILL_BYTES", 2 * SIZE)
    found = tiers()
    for i in range(4):
        found.add(f"{i}", tip=True)
    found.writeback.shrink(0)
    assert found.writeback.spilled_away == 2
    assert not found.writeback.can_spill
    found.take_in(2)
    assert found.writeback.can_spill
    assert len(found.written()) == 2


def test_room_in_memory_is_made_by_writing(tiers: Callable[..., Tiers]) -> None:
    found = tiers()
    entries = [found.add(f"{i}", tip=True) for i in range(12)]
    assert found.memory.bytes == 10 * SIZE
    found.take_in(2)
    assert found.written() == names(*entries[:2])


def test_what_a_limit_refused_is_remembered_until_it_is_kept_or_all_is_cleared(tiers: Callable[..., Tiers]) -> None:
    found = tiers(Limits(disk_bytes=1 << 30, write_bytes_a_day=1, free_bytes=0))
    kept = found.add("a")
    found.tend()
    assert [answer.kept for answer in found.take_in(1)] == [False]
    assert kept.dirty
    assert kept.entry.key in found.writeback.refused
    found.writeback.saved(Saved(kept.entry.key, kept=True))
    assert not found.writeback.refused
    found.writeback.saved(Saved(kept.entry.key, kept=False))
    found.writeback.forget_refusals()
    assert not found.writeback.refused


def test_not_more_refusals_are_remembered_than_are_useful(
    tiers: Callable[..., Tiers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writeback, "MAX_REFUSED", 3)
    found = tiers()
    for i in range(5):
        found.writeback.saved(Saved(b"%d" % i, kept=False))
    assert [*found.writeback.refused] == [b"2", b"3", b"4"]


def test_without_a_disk_nothing_waits_for_one() -> None:
    memory = MemoryTier(1 << 20)
    alone = Writeback(memory, None, dict)
    entry = Entry(b"k", "block", b"root", 0, 1, b"", (), 0, 0.0, tip=True)
    alone.add(Kept(entry, {"k": Tensor("U8", (1,), memoryview(b"1"))}, {}, dirty=True))
    alone.admit(b"k")
    assert (alone.is_on, alone.can_spill) == (False, False)
    assert alone.tend(busy=False, now=time.monotonic() + 1000) is None
    assert alone.flush(1.0, lambda: None)
    alone.shrink(0)
    assert (len(memory), alone.spilled_away) == (0, 1)
