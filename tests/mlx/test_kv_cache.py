"""Prefixes survive in memory, on SSD and across restarts, and no greedy answer changes by it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.fleet.protocol import Cancel, FreeMemory
from engine.kvstore.directory import LAYOUT, Limits
from engine.kvstore.index import Entry, Index, IndexBusy
from engine.types import Finished, GenerationRequest, Message, Part, TextDelta
from engine.worker.kvcache import admission, chunks, records
from engine.worker.kvcache.admission import PrefillSpeed
from engine.worker.kvcache.cache import PrefixCache
from engine.worker.kvcache.keeping import Keeping
from engine.worker.kvcache.memory_tier import Kept, MemoryTier
from engine.worker.kvcache.messages import Answer, Found
from engine.worker.kvcache.writeback import Writeback
from engine.worker.model import Loaded
from tests import checkpoints
from tests.mlx.conftest import Driver, ask, picture, words
from tests.mlx.kv import LIMITS, KvDriver

KINDS = [(kind, None) for kind in (*checkpoints.KINDS, "four bits")] + [("plain", 8), ("hybrid", 8), ("plain", 4)]
IDS = [kind if bits is None else f"{kind}-{bits}bit" for kind, bits in KINDS]
HEAD = words(600, 1)


def request(name: str, tail: int, *, tokens: int = 16) -> GenerationRequest:
    return ask(name, HEAD + words(30, tail), tokens=tokens)


def plainly(loaded: Loaded, bits: int | None, requests: list[GenerationRequest]) -> dict[str, bytes]:
    """Each alone, without any cache of earlier prompts."""
    found = {}
    for item in requests:
        driver = Driver(loaded, kv_bits=bits)
        found |= driver.run([item])
    return found


@pytest.mark.parametrize(("kind", "bits"), KINDS, ids=IDS)
def test_greedy_answers_never_change_through_memory_ssd_and_restart(
    model: Callable[..., Loaded], tmp_path: Path, kind: str, bits: int | None
) -> None:
    loaded = model(kind)
    requests = [request(f"r{i}", i) for i in range(4)]
    expected = plainly(loaded, bits, requests)
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
    model: Callable[..., Loaded], tmp_path: Path, kind: str, bits: int | None
) -> None:
    loaded = model(kind)
    warm = [request(f"w{i}", i) for i in range(3)]
    cold = [ask(f"c{i}", words(length, 70 + i), tokens=20) for i, length in enumerate((3, 90, 400))]
    both = [warm[2], cold[0], cold[1], request("w3", 3), cold[2], ask("one", "q", tokens=12, role="raw")]
    expected = plainly(loaded, bits, [*warm, *both])
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
    model: Callable[..., Loaded], tmp_path: Path, kind: str, bits: int | None, memory_bytes: int
) -> None:
    loaded = model(kind)
    rows = [request("a", 1, tokens=40), ask("b", words(90, 5), tokens=40, temperature=1.0, seed=9)]
    expected = plainly(loaded, bits, rows)
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


def test_a_system_message_of_a_hybrid_is_found_by_the_second_request(
    model: Callable[..., Loaded], tmp_path: Path
) -> None:
    loaded = model("hybrid")
    system = words(400, 3)

    def chat(name: str, seed: int) -> GenerationRequest:
        messages = (
            Message("system", (Part("text", text=system),)),
            Message("user", (Part("text", text=words(50, seed)),)),
        )
        return msgspec.structs.replace(ask(name, "x", tokens=8), messages=messages)

    driver = KvDriver(loaded, tmp_path / "kv")
    driver.run([chat("one", 1)])
    driver.run([chat("two", 2)])
    assert driver.cached("two") >= 400
    assert driver.note("two").reason.startswith("diverged_at(")
    driver.end()
    again = KvDriver(loaded, tmp_path / "kv")
    again.run([chat("three", 3)])
    assert again.cached("three") >= 400
    assert again.note("three").tier == "ssd"
    again.end()


def test_a_document_before_a_question_is_found_by_the_second_question(
    model: Callable[..., Loaded], tmp_path: Path
) -> None:
    loaded = model("hybrid")
    document = f"{words(400, 3)}.\n\n{words(400, 4)}"

    def question(name: str, seed: int) -> GenerationRequest:
        return ask(name, f"{document}\n\n{words(20, seed)}", tokens=8)

    questions = [question("one", 1), question("two", 2)]
    expected = {item.id: Driver(loaded).run([item])[item.id] for item in questions}
    driver = KvDriver(loaded, tmp_path / "kv")
    assert {item.id: driver.run([item])[item.id] for item in questions} == expected
    assert driver.cached("two") >= 800
    driver.end()


def test_a_picture_and_a_document_before_a_question_are_found_by_the_second_question(
    model: Callable[..., Loaded], tmp_path: Path
) -> None:
    loaded = model("hybrid")
    asked = [ask(f"q{i}", f"{words(700, 3)}\n\n{words(20, i)}", images=(picture(1),), tokens=8) for i in range(2)]
    asked.append(ask("other", f"{words(700, 3)}\n\n{words(20, 1)}", images=(picture(2),), tokens=8))
    expected = plainly(loaded, None, asked)
    driver = KvDriver(loaded, tmp_path / "kv")
    assert {item.id: driver.run([item])[item.id] for item in asked} == expected
    assert driver.cached("q1") >= 700
    assert driver.cached("other") == 0  # no state in front of the picture
    driver.end()


@pytest.mark.parametrize("kind", ["plain", "hybrid", "windowed"])
def test_a_chat_computes_its_last_turn_only_also_after_a_restart(
    model: Callable[..., Loaded], tmp_path: Path, kind: str
) -> None:
    loaded = model(kind)
    messages = [Message("system", (Part("text", text=words(200, 3)),))]
    driver, last = KvDriver(loaded, tmp_path / "kv"), 0
    for turn in range(8):
        messages.append(Message("user", (Part("text", text=words(60, 20 + turn)),)))
        asked = msgspec.structs.replace(ask(f"t{turn}", "x", tokens=12), messages=tuple(messages))
        driver.run([asked])
        usage = driver.of(f"t{turn}", Finished)[0].usage
        if turn:
            # The answer's bytes are not always text: what was shown of it may be other tokens than those that were drawn, and
            # then the state before the answer counts, in front of the generation prompt.
            generation_prompt = len("<assistant\n")
            assert usage.prompt_tokens - usage.cached_tokens <= usage.prompt_tokens - last + generation_prompt + 1
        last = usage.prompt_tokens
        messages.append(Message("assistant", (Part("text", text=driver.text(f"t{turn}")),)))
        if turn == 3:
            driver.end()
            driver = KvDriver(loaded, tmp_path / "kv")
    driver.end()


def test_pictures_are_shared_by_content_and_never_cut(model: Callable[..., Loaded], tmp_path: Path) -> None:
    loaded = model("vision")
    text = words(100, 8)
    asked = [
        ask("first", text, images=(picture(1),), tokens=12),
        ask("same", text + "more", images=(picture(1),), tokens=12),
        ask("other", text, images=(picture(2),), tokens=12),
        ask("two", text, images=(picture(1), picture(2)), tokens=12),
    ]
    expected = plainly(loaded, None, asked)
    driver = KvDriver(loaded, tmp_path / "kv", chunk_tokens=16)
    for item in asked:
        assert driver.run([item])[item.id] == expected[item.id]
    assert driver.cached("same") > 100
    assert 0 < driver.cached("other") < 24  # what stands before the picture
    driver.end()


def test_a_prefill_that_is_cancelled_inside_a_picture_is_kept_up_to_it(
    model: Callable[..., Loaded], tmp_path: Path
) -> None:
    driver = KvDriver(model("hybrid"), tmp_path / "kv", chunk_tokens=16)
    driver.post(ask("gone", words(200, 4), images=(picture(3, (320, 256)),)))
    while not driver.prefilled("gone"):
        driver.tick()
    session = driver.session("gone")
    assert session is not None
    (medium,) = session.prompt.media
    assert medium.start < driver.prefilled("gone") < medium.end
    driver.post(Cancel("gone"))
    driver.tick()
    assert {kept.entry.end for kept in driver.memory.newest_first()} == {medium.start}
    driver.end()


def test_store_false_keeps_nothing_and_tenants_share_nothing(model: Callable[..., Loaded], tmp_path: Path) -> None:
    driver = KvDriver(model("plain"), tmp_path / "kv")
    driver.run([msgspec.structs.replace(request("secret", 1), store=False)])
    assert driver.kv.report.memory_entries == 0
    driver.run([request("mine", 1)])
    driver.run([msgspec.structs.replace(request("theirs", 1), tenant="another")])
    assert driver.note("mine").reason == "cold"
    assert driver.cached("theirs") == 0
    driver.end()
    assert not [path for path in tmp_path.glob("kv/files/*/*") if path.suffix != ".safetensors"]


def test_a_cancelled_prefill_is_not_lost(model: Callable[..., Loaded], tmp_path: Path) -> None:
    driver = KvDriver(model("hybrid"), tmp_path / "kv", chunk_tokens=64)
    driver.post(request("gone", 1))
    while driver.session("gone") is None or driver.ticks < 6:
        driver.tick()
    driver.post(Cancel("gone"))
    driver.tick()
    driver.run([request("again", 1)])
    assert driver.cached("again") >= 128
    driver.end()


def test_memory_stays_within_its_limit_and_what_is_pushed_out_is_found_on_ssd(
    model: Callable[..., Loaded], tmp_path: Path
) -> None:
    loaded = model("plain")
    limit = 2_000_000  # about two of these prompts
    driver = KvDriver(loaded, tmp_path / "kv", memory_bytes=limit)
    for i in range(2):
        driver.run([request(f"r{i}", i)])
    for i in range(5):
        driver.run([ask(f"other{i}", words(600, 90 + i), tokens=4)])
        assert driver.kv.report.memory_bytes <= limit
    driver.run([request("back", 1)])
    assert driver.note("back").tier == "ssd"
    assert driver.cached("back") >= 600
    driver.end()


def test_freed_memory_is_found_on_ssd_if_it_had_earned_its_place(model: Callable[..., Loaded], tmp_path: Path) -> None:
    loaded = model("plain")
    driver = KvDriver(loaded, tmp_path / "kv")
    for i in range(2):  # the beginning is seen twice
        driver.run([request(f"r{i}", i)])
    assert driver.kv.report.memory_bytes > 0
    driver.post(FreeMemory())
    driver.tick()
    assert driver.kv.report.memory_bytes == 0
    while driver.writeback._saving:
        driver.tick()
    answers = driver.run([request("again", 1)])
    assert (driver.note("again").tier, driver.cached("again") >= 512) == ("ssd", True)
    assert answers["again"] == plainly(loaded, None, [request("again", 1)])["again"]
    driver.end()


def test_requests_with_the_same_beginning_read_it_once(model: Callable[..., Loaded], tmp_path: Path) -> None:
    loaded = model("plain")
    first = KvDriver(loaded, tmp_path / "kv")
    first.run([request("r0", 0)])
    first.end()
    driver = KvDriver(loaded, tmp_path / "kv")
    driver.run([request(f"r{i}", i) for i in range(4)])
    size = sum(path.stat().st_size for path in (tmp_path / "kv/files").glob("*/*"))
    assert 0 < driver.kv.report.read_bytes <= size
    assert all(driver.cached(f"r{i}") >= 600 for i in range(4))
    driver.end()


def test_what_many_requests_lack_is_read_once_also_behind_what_they_share_with_another(
    model: Callable[..., Loaded], tmp_path: Path
) -> None:
    loaded = model("plain")
    head, tails = words(300, 1), (words(300, 2), words(1500, 3))
    first = KvDriver(loaded, tmp_path / "kv")
    for i, tail in enumerate(tails):
        first.run([ask(f"r{i}", head + tail, tokens=4)])
    first.end()
    size = sum(path.stat().st_size for path in (tmp_path / "kv/files").glob("*/*"))
    driver = KvDriver(loaded, tmp_path / "kv")
    driver.run([ask("short", head + tails[0], tokens=4), *(ask(f"l{i}", f"{head}{tails[1]}{i}") for i in range(4))])
    assert driver.kv.report.read_bytes <= size
    assert all(driver.cached(f"l{i}") >= 1800 for i in range(4))
    driver.end()


def test_requests_that_wait_hold_no_more_memory_than_there_is(model: Callable[..., Loaded], tmp_path: Path) -> None:
    loaded = model("plain")
    asked = [ask(f"r{i}", words(1500, 100 + i), tokens=8) for i in range(8)]
    first = KvDriver(loaded, tmp_path / "kv")
    expected = first.run(asked)
    first.end()
    driver = KvDriver(loaded, tmp_path / "kv", memory_bytes=4_000_000, max_rows=1)  # two prompts and a half
    for item in asked:
        driver.post(item)
    held = 0
    while not all(driver.over(item.id) for item in asked):
        driver.tick()
        held = max(held, driver.kv.report.memory_bytes)
    assert held <= 6_000_000
    assert {item.id: driver.raw(item.id) for item in asked} == expected
    assert all(driver.cached(item.id) >= 1500 for item in asked)
    assert all(driver.note(item.id).tier == "ssd" for item in asked)
    assert driver.disk._ahead == 0
    driver.end()


def test_a_prompt_that_is_looked_up_again_as_it_begins_was_not_seen_twice(
    model: Callable[..., Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "WORTH_SECONDS", math.inf)  # a busy machine prefills slowly, and keeps for that
    loaded = model("plain")
    first = KvDriver(loaded, tmp_path / "kv")
    first.run([ask(f"r{i}", words(700, 100 + i), tokens=8) for i in range(4)])
    first.end()
    driver = KvDriver(loaded, tmp_path / "kv", memory_bytes=1_000_000, max_rows=1)
    driver.run([ask(f"s{i}", f"{words(700, 100 + i)} {words(900, 200 + i)}", tokens=8) for i in range(4)])
    assert all(driver.cached(f"s{i}") >= 512 for i in range(4))
    assert driver.kv.report.written_bytes == 0
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


def test_what_had_to_give_way_on_ssd_is_named(model: Callable[..., Loaded], tmp_path: Path) -> None:
    limits = replace(LIMITS, disk_bytes=1_500_000)
    driver = KvDriver(model("plain"), tmp_path / "kv", memory_bytes=1, limits=limits)
    for i in range(3):
        driver.run([ask(f"r{i}", f"{words(600, 1)}{i}", tokens=4)])
    for i in range(8):
        driver.run([ask(f"other{i}", f"{words(900, 50 + i // 2)}{i}", tokens=4)])
    driver.run([ask("again", words(600, 1), tokens=4)])
    assert driver.note("again").reason == "evicted"
    driver.end()


def test_what_was_not_written_because_all_was_cleared_is_not_called_a_quota(
    model: Callable[..., Loaded], tmp_path: Path
) -> None:
    driver = KvDriver(model("plain"), tmp_path / "kv")
    driver.run([request("r0", 0)])
    with driver.disk._wake:  # its thread does nothing meanwhile
        for kept in driver.memory.newest_first():
            driver.writeback._save(kept.entry.key, forced=True)
        driver.kv.clear()
    driver.run([ask("other", words(20, 7), tokens=4)])
    driver.run([request("again", 0)])
    assert driver.note("again").reason != "quota"
    driver.end()


def test_other_weights_or_layout_find_nothing(model: Callable[..., Loaded], tmp_path: Path) -> None:
    first = KvDriver(model("plain"), tmp_path / "kv")
    first.run([request("r0", 0)])
    first.end()
    other = KvDriver(model("plain"), tmp_path / "kv", fingerprint="g")
    other.run([request("r1", 0)])
    assert other.cached("r1") == 0
    other.end()
    about = tmp_path / "kv" / "about.json"
    about.write_text(about.read_text().replace(f'"layout": {LAYOUT}', '"layout": 0'))
    relaid = KvDriver(model("plain"), tmp_path / "kv")
    relaid.run([request("r2", 0)])
    assert relaid.note("r2").reason == "layout"
    relaid.end()


def test_a_damaged_file_is_a_miss_with_the_right_answer(model: Callable[..., Loaded], tmp_path: Path) -> None:
    loaded = model("plain")
    expected = plainly(loaded, None, [request("r0", 0)])["r0"]
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


def test_a_full_write_budget_is_named(model: Callable[..., Loaded], tmp_path: Path) -> None:
    limits = Limits(disk_bytes=1 << 30, write_bytes_a_day=1000, free_bytes=0)
    first = KvDriver(model("plain"), tmp_path / "kv", limits=limits)
    for i in range(2):
        first.run([request(f"r{i}", i)])
    first.end()
    assert first.kv.report.refused > 0
    assert first.kv.report.written_bytes == 0


def test_without_a_usable_folder_memory_serves(model: Callable[..., Loaded], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    driver = KvDriver(model("plain"), tmp_path / "file" / "kv")
    for i in range(2):
        driver.run([request(f"r{i}", i)])
    assert driver.cached("r1") >= 600
    assert "cannot be used" in driver.kv.report.off


def test_clearing_forgets_both_tiers(model: Callable[..., Loaded], tmp_path: Path) -> None:
    driver = KvDriver(model("plain"), tmp_path / "kv")
    for i in range(2):
        driver.run([request(f"r{i}", i)])
    driver.kv.clear()
    driver.run([request("r2", 2)])
    assert driver.cached("r2") == 0
    driver.end()
    assert LIMITS.disk_bytes > driver.kv.report.disk_bytes


def test_what_was_not_used_for_long_leaves_memory_also_behind_what_is_nowhere_else() -> None:
    tier = MemoryTier(1 << 20)
    for name, dirty in ((b"new", True), (b"old", False), (b"pinned", False)):
        entry = Entry(name, "block", b"root", 0, 1, b"", (), 0, 0.0, tip=False)
        tier.add(Kept(entry, {}, {}, dirty=dirty, pins=int(name == b"pinned"), used=0.0))
    tier.add(Kept(Entry(b"now", "block", b"root", 0, 1, b"", (), 0, 0.0, tip=False), {}, {}, dirty=False))
    tier.forget(60.0)
    assert tier.known([b"new", b"old", b"pinned", b"now"]) == {b"new", b"pinned", b"now"}


def test_where_a_prompt_is_cut_depends_only_on_what_stands_before() -> None:
    rng = np.random.default_rng(1)
    ids = chunks.as_tokens(rng.integers(0, 1000, 1500).tolist())
    medium = chunks.Media(200, 300, b"m" * 32)
    whole = chunks.blocks(b"root", ids, (medium,))
    assert [(block.start, block.end) for block in whole][:2] == [(0, 300), (300, 556)]
    shorter = chunks.blocks(b"root", ids[:900], (medium,))
    assert [block.key for block in shorter if block.complete] == [block.key for block in whole][: len(shorter) - 1]


def test_the_cache_needs_layers_it_knows() -> None:
    with pytest.raises(records.Unsupported):
        PrefixCache(new_cache=lambda: [object()], identity=None, memory_bytes=1, open_directory=None, post=print)  # type: ignore[arg-type]


FAULTS = [
    *((PrefixCache, method) for method in ("_ask", "_settle", "_filled", "_pin", "_unpin")),
    *((Writeback, method) for method in ("_save", "_spill", "_hand_over")),
    (Keeping, "state"),
    (PrefillSpeed, "measure"),
]


@pytest.mark.parametrize(("owner", "method"), FAULTS, ids=[f"{owner.__name__}.{method}" for owner, method in FAULTS])
def test_a_fault_in_the_cache_costs_the_cache_and_no_request(
    model: Callable[..., Loaded], tmp_path: Path, owner: type, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = model("hybrid")
    asked = [request(f"r{i}", i) for i in range(3)]
    expected = plainly(loaded, None, asked)
    driver = KvDriver(loaded, tmp_path / "kv", memory_bytes=300_000)
    driver.run([ask("before", words(100, 9))])

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(owner, method, fails)
    assert driver.run(asked, [0, 0, 30]) == expected
    if method == "_ask":
        assert "RuntimeError" in driver.kv.report.off  # three faults in a row


def test_a_prompt_larger_than_memory_keeps_its_beginning(model: Callable[..., Loaded], tmp_path: Path) -> None:
    loaded = model("plain")
    driver = KvDriver(loaded, None, memory_bytes=600_000)  # a prompt of 1,200 tokens has twice as much
    long = words(1200, 4)
    driver.run([ask("first", long, tokens=4)])
    driver.run([ask("again", long, tokens=4)])
    assert driver.cached("again") >= 256
    assert driver.kv.report.memory_bytes <= 600_000


def test_what_is_being_read_when_everything_is_cleared_is_not_kept(
    model: Callable[..., Loaded], tmp_path: Path
) -> None:
    loaded = model("plain")
    first = KvDriver(loaded, tmp_path / "kv")
    first.run([request("r0", 0)])
    first.end()
    driver = KvDriver(loaded, tmp_path / "kv")
    driver.post(request("r1", 1))
    driver.loop._handle(driver.mailbox.get())
    driver.kv.clear()
    driver.run([request("r2", 2)])
    driver.run([request("r3", 3)])
    assert driver.cached("r2") == 0
    driver.end()


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


@pytest.mark.parametrize(("kind", "bits"), KINDS, ids=IDS)
def test_answers_depend_on_the_whole_prompt(model: Callable[..., Loaded], kind: str, bits: int | None) -> None:
    """Else no test here could fail: a wrong cache has to show."""
    loaded = model(kind)
    asked = [ask(f"r{i}", words(20, 40 + i) + HEAD[:300], tokens=10) for i in range(4)]
    assert len(set(plainly(loaded, bits, asked).values())) >= 3
