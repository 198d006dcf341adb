"""No answer changes because a prompt's beginning was restored: from memory, from SSD, after a restart or beside other rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from engine.types import Finished, TextDelta
from engine.worker.kvcache import records
from engine.worker.model import Loaded
from tests import checkpoints
from tests.mlx.conftest import Driver, ask, words
from tests.mlx.kv import HEAD, KvDriver, request

KINDS = [(kind, None) for kind in (*checkpoints.KINDS, "four bits")] + [("plain", 8), ("hybrid", 8), ("plain", 4)]
IDS = [kind if bits is None else f"{kind}-{bits}bit" for kind, bits in KINDS]


@pytest.mark.parametrize(("kind", "bits"), KINDS, ids=IDS)
def test_greedy_answers_never_change_through_memory_ssd_and_restart(
    model: Callable[..., Loaded], alone: Callable[..., bytes], tmp_path: Path, kind: str, bits: int | None
) -> None:
    loaded = model(kind)
    requests = [request(f"r{i}", i) for i in range(4)]
    expected = {item.id: alone(kind, item, kv_bits=bits) for item in requests}
    first = KvDriver(loaded, tmp_path / "kv", kv_bits=bits)
    for item in requests[:3]:
        assert first.run([item])[item.id] == expected[item.id]
    assert first.note("r0").reason == "cold"
    assert first.cached("r2") >= 600
    assert first.note("r2").tier == "ram"
    first.end()
    second = KvDriver(loaded, tmp_path / "kv", kv_bits=bits)
    assert second.run([requests[3]])["r3"] == expected["r3"]
    assert second.note("r3").tier == "ssd"
    assert second.cached("r3") >= 600
    second.end()


@pytest.mark.parametrize(("kind", "bits"), KINDS, ids=IDS)
def test_restored_rows_beside_cold_ones_equal_themselves_alone(
    model: Callable[..., Loaded], alone: Callable[..., bytes], tmp_path: Path, kind: str, bits: int | None
) -> None:
    loaded = model(kind)
    warm = [request(f"w{i}", i) for i in range(3)]
    cold = [ask(f"c{i}", words(length, 70 + i), tokens=20) for i, length in enumerate((3, 90, 400))]
    both = [warm[2], cold[0], cold[1], request("w3", 3), cold[2], ask("one", "q", tokens=12, role="raw")]
    expected = {item.id: alone(kind, item, kv_bits=bits) for item in [*warm, *both]}
    first = KvDriver(loaded, tmp_path / "kv", kv_bits=bits)
    for item in warm[:2]:
        first.run([item])
    first.end()
    driver = KvDriver(loaded, tmp_path / "kv", kv_bits=bits)
    got = driver.run(both, [0, 0, 1, 2, 3, 4])
    assert got == {item.id: expected[item.id] for item in both}
    assert driver.cached("w3") >= 600
    driver.end()


@pytest.mark.parametrize(("kind", "bits"), KINDS, ids=IDS)
@pytest.mark.parametrize("memory_bytes", [1 << 28, 1], ids=["in memory", "on SSD"])
def test_a_preempted_row_goes_on_as_if_nothing_had_happened(
    model: Callable[..., Loaded],
    alone: Callable[..., bytes],
    tmp_path: Path,
    kind: str,
    bits: int | None,
    memory_bytes: int,
) -> None:
    loaded = model(kind)
    rows = [request("a", 1, tokens=40), ask("b", words(90, 5), tokens=40, temperature=1.0, seed=9)]
    expected = {item.id: alone(kind, item, kv_bits=bits) for item in rows}
    driver = KvDriver(loaded, tmp_path / "kv", memory_bytes=memory_bytes, kv_bits=bits)
    for item in rows:
        driver.post(item)
    swapped = 0
    while not all(driver.over(item.id) for item in rows):
        said = len(driver.of("a", TextDelta))
        if said in (5, 20) and swapped < said:
            swapped = said if driver.preempt("a") else swapped
        driver.tick()
    assert swapped == 20
    assert {item.id: driver.raw(item.id) for item in rows} == expected
    assert driver.of("a", Finished)[0].usage.completion_tokens == 40
    driver.end()


@pytest.mark.parametrize(("kind", "bits"), [("hybrid", None), ("windowed", None), ("four bits", None), ("plain", 4)])
def test_bytes_come_back_from_ssd_as_they_were(
    model: Callable[..., Loaded], tmp_path: Path, kind: str, bits: int | None
) -> None:
    loaded = model(kind, "bfloat16")
    first = KvDriver(loaded, tmp_path / "kv", kv_bits=bits)
    for i in range(3):
        first.run([request(f"r{i}", i)])
    held = {item.entry.key: item for item in first.memory.newest_first()}
    first.end()
    second = KvDriver(loaded, tmp_path / "kv", kv_bits=bits)
    second.run([request("again", 2)])
    compared = 0
    for item in second.memory.newest_first():
        before = held.get(item.entry.key)
        if before is None or item.dirty:
            continue
        ours, theirs = item.content, records.as_tensors(before.content)
        for name, tensor in (ours if item.entry.kind == "block" else records.as_tensors(ours)).items():
            assert (tensor.dtype, tensor.shape) == (theirs[name].dtype, theirs[name].shape)
            assert bytes(tensor.data) == bytes(theirs[name].data)
            compared += 1
    assert compared >= 8
    second.end()


@pytest.mark.parametrize("kind", ["plain", "hybrid", "windowed", "four bits"])
def test_in_bfloat16_answers_part_only_where_the_two_best_tokens_are_close(
    model: Callable[..., Loaded], tmp_path: Path, kind: str
) -> None:
    loaded = model(kind, "bfloat16")
    asked = [msgspec.structs.replace(request(f"r{i}", i), sampling=request("x", 0).sampling) for i in range(4)]
    asked = [
        msgspec.structs.replace(item, sampling=msgspec.structs.replace(item.sampling, top_logprobs=2)) for item in asked
    ]
    # Chunking noise: the same prompt without any cache, cut elsewhere.
    for item in asked:
        coarse, fine = Driver(loaded, chunk_tokens=256), Driver(loaded, chunk_tokens=37)
        coarse.run([item])
        fine.run([item])
        noise = _noise(coarse, fine, item.id)
        driver = KvDriver(loaded, tmp_path / "kv")
        driver.run([item])
        driver.end()
        ours, theirs = driver.of(item.id, TextDelta), coarse.of(item.id, TextDelta)
        for mine, yours in zip(ours, theirs, strict=True):
            if mine.logprob.raw != yours.logprob.raw:
                best, second = sorted((option.logprob for option in yours.top), reverse=True)[:2]
                assert best - second <= 4 * max(noise, 0.02), (item.id, best - second, noise)
                break


def _noise(first: Driver, second: Driver, name: str) -> float:
    found = 0.0
    for mine, yours in zip(first.of(name, TextDelta), second.of(name, TextDelta), strict=True):
        if mine.logprob.raw != yours.logprob.raw:
            break
        found = max(found, abs(mine.logprob.logprob - yours.logprob.logprob))
    return found


@pytest.mark.parametrize(("kind", "bits"), KINDS, ids=IDS)
def test_answers_depend_on_the_whole_prompt(alone: Callable[..., bytes], kind: str, bits: int | None) -> None:
    """Else no test here could fail: a wrong cache has to show."""
    asked = [ask(f"r{i}", words(20, 40 + i) + HEAD[:300], tokens=10) for i in range(4)]
    assert len({alone(kind, item, kv_bits=bits) for item in asked}) >= 3
