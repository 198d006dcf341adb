"""Memory and SSD keep their limits, and say why something is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.fleet.protocol import FreeMemory
from engine.kvstore.directory import LAYOUT, Limits
from engine.worker.model import Loaded
from tests.mlx.conftest import ask, words
from tests.mlx.kv import LIMITS, KvDriver, request


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


def test_freed_memory_is_found_on_ssd_if_it_had_earned_its_place(
    model: Callable[..., Loaded], alone: Callable[..., bytes], tmp_path: Path
) -> None:
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
    assert answers["again"] == alone("plain", request("again", 1))
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


def test_a_prompt_larger_than_memory_keeps_its_beginning(model: Callable[..., Loaded], tmp_path: Path) -> None:
    loaded = model("plain")
    driver = KvDriver(loaded, None, memory_bytes=600_000)  # a prompt of 1,200 tokens has twice as much
    long = words(1200, 4)
    driver.run([ask("first", long, tokens=4)])
    driver.run([ask("again", long, tokens=4)])
    assert driver.cached("again") >= 256
    assert driver.kv.report.memory_bytes <= 600_000


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


def test_clearing_forgets_both_tiers(model: Callable[..., Loaded], tmp_path: Path) -> None:
    driver = KvDriver(model("plain"), tmp_path / "kv")
    for i in range(2):
        driver.run([request(f"r{i}", i)])
    driver.kv.clear()
    driver.run([request("r2", 2)])
    assert driver.cached("r2") == 0
    driver.end()
    assert LIMITS.disk_bytes > driver.kv.report.disk_bytes


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
