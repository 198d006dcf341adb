"""Damage on the disk, faults in the cache and failed prefills cost KV and no request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from engine.kvstore.index import Index, IndexBusy
from engine.types import Message, Part
from engine.worker.kvcache import records
from engine.worker.kvcache.admission import PrefillSpeed
from engine.worker.kvcache.cache import PrefixCache
from engine.worker.kvcache.keeping import Keeping
from engine.worker.kvcache.messages import Answer, Found
from engine.worker.kvcache.writeback import Writeback
from engine.worker.model import Loaded
from tests.mlx.conftest import ask, words
from tests.mlx.kv import KvDriver, request


def test_a_damaged_file_is_a_miss_with_the_right_answer(
    model: Callable[..., Loaded], alone: Callable[..., bytes], tmp_path: Path
) -> None:
    loaded = model("plain")
    expected = alone("plain", request("r0", 0))
    first = KvDriver(loaded, tmp_path / "kv")
    first.run([request("r0", 0)])
    first.end()
    for path in (tmp_path / "kv/files").glob("*/*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    driver = KvDriver(loaded, tmp_path / "kv")
    assert driver.run([request("r0", 0)])["r0"] == expected
    assert (driver.cached("r0"), driver.note("r0").reason) == (0, "corrupt")
    assert driver.run([request("r9", 0)])["r9"] == expected
    assert driver.cached("r9") > 600
    driver.end()


def test_a_lookup_is_answered_once_also_when_it_cannot_be_noted(
    model: Callable[..., Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_full(*_: object, **__: object) -> None:
        raise IndexBusy("the disk is full")

    monkeypatch.setattr(Index, "sight", is_full)
    driver, answered = KvDriver(model("plain"), tmp_path / "kv"), []
    io = driver.disk
    post = io._post

    def noted(answer: Answer) -> None:
        if isinstance(answer, Found):
            answered.append(answer.id)
        post(answer)

    monkeypatch.setattr(io, "_post", noted)
    driver.run([request("r0", 0)])
    assert io.close(60.0), "it is noted after the answer: only a thread that has ended says no more"
    assert answered == ["r0"]
    assert "full" in driver.kv.report.off


FAULTS = [
    *((PrefixCache, method) for method in ("_ask", "_settle", "_filled", "_pin", "_unpin")),
    *((Writeback, method) for method in ("_save", "_spill", "_hand_over")),
    (Keeping, "state"),
    (PrefillSpeed, "measure"),
]


@pytest.mark.parametrize(("owner", "method"), FAULTS, ids=[f"{owner.__name__}.{method}" for owner, method in FAULTS])
def test_a_fault_in_the_cache_costs_the_cache_and_no_request(
    model: Callable[..., Loaded],
    alone: Callable[..., bytes],
    tmp_path: Path,
    owner: type,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = model("hybrid")
    asked = [request(f"r{i}", i) for i in range(3)]
    expected = {item.id: alone("hybrid", item) for item in asked}
    driver = KvDriver(loaded, tmp_path / "kv", memory_bytes=300_000)
    driver.run([ask("before", words(100, 9))])

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(owner, method, fails)
    assert driver.run(asked, [0, 0, 30]) == expected
    if method == "_ask":
        assert "RuntimeError" in driver.kv.report.off  # three faults in a row


def test_a_chunk_after_a_failed_one_does_not_run(
    model: Callable[..., Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.types import Failed

    loaded = model("hybrid")
    driver = KvDriver(loaded, tmp_path / "kv", chunk_tokens=512)
    ran = driver.fail_prefill(monkeypatch, "a fault of the device", once=True)
    chat = ask("bad", "x", tokens=4)
    parts = (
        Message("system", (Part("text", text=words(200, 3)),)),
        Message("user", (Part("text", text=words(50, 1)),)),
    )
    driver.post(msgspec.structs.replace(chat, messages=parts))
    while not driver.over("bad"):
        driver.tick()
    assert driver.of("bad", Failed)
    assert len(ran) == 1
    assert driver.kv.report.memory_entries == 0
    driver.end()


def test_the_cache_needs_layers_it_knows() -> None:
    with pytest.raises(records.Unsupported):
        PrefixCache(new_cache=lambda: [object()], identity=None, memory_bytes=1, open_directory=None, post=print)  # type: ignore[arg-type]
