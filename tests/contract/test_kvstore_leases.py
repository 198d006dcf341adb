"""How gateways share the caps of a home among KV directories, and trim those that nobody uses."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

from engine.kvstore import notes
from engine.kvstore.directory import Directory
from engine.kvstore.leases import Caps, Leases
from tests.contract.kvstore import ABOUT, ROOMY, add, holds, key_of


@pytest.fixture(autouse=True)
def one_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget is one day's: no test may meet a midnight."""
    monkeypatch.setattr(notes, "today", lambda: "2026-01-01")


def leases(root: Path, disk_bytes: int = 100_000, write_bytes: int = 1 << 30) -> Leases:
    caps = Caps(disk_bytes, write_bytes, free_bytes=0, age_seconds=1e9)
    return Leases(root, caps, memory_bytes=1, flush_seconds=1.0)


def fill(path: Path, count: int, name: str = "m") -> None:
    with contextlib.closing(Directory(path, ROOMY, {"model": name})) as found:
        for i in range(count):
            add(found, f"{path.name} {i}")


def lying(root: Path) -> int:
    return sum(path.stat().st_size for path in root.glob("*/files/*/*"))


def test_leases_share_the_cap_and_idle_directories_give_way(tmp_path: Path) -> None:
    for number in range(3):
        fill(tmp_path / f"d{number}", 7)
    gateway = leases(tmp_path)
    granted = [gateway.grant(name) for name in ("new", "d2", "other")]
    assert all(lease.disk_bytes > 0 for lease in granted)
    idle = sum(report.contents.bytes for report in gateway.reports() if report.path.name in ("d0", "d1"))
    assert sum(lease.disk_bytes for lease in granted) + idle <= 100_000
    gateway.give_back(granted[0])
    gateway.give_back(granted[2])
    assert gateway.grant("third").disk_bytes >= 12_500


def test_another_directory_of_the_same_model_counts_and_can_be_trimmed(tmp_path: Path) -> None:
    fill(tmp_path / "before-an-upgrade", 22, "m")
    lease = leases(tmp_path).grant("after-it")
    assert lease.disk_bytes + lying(tmp_path) <= 100_000
    assert lease.disk_bytes >= 12_500


def test_two_gateways_on_one_home_keep_the_cap_and_the_budget_together(tmp_path: Path) -> None:
    first, second = leases(tmp_path, write_bytes=100_000), leases(tmp_path, write_bytes=100_000)
    with contextlib.ExitStack() as stack:
        granted = []
        for gateway, name in ((first, "a"), (second, "b"), (first, "c"), (second, "d")):
            lease = gateway.grant(name)
            assert lease.directory is not None
            stack.enter_context(contextlib.closing(Directory(Path(os.fsdecode(lease.directory)), ROOMY, ABOUT)))
            granted.append(lease)
        assert sum(lease.disk_bytes for lease in granted) <= 100_000
        assert sum(lease.write_bytes for lease in granted) <= 100_000


def test_two_workers_with_the_same_weights_do_not_hide_each_other_s_lease(tmp_path: Path) -> None:
    gateway, other = leases(tmp_path), leases(tmp_path)
    first, beside = gateway.grant("same"), gateway.grant("beside")
    with contextlib.ExitStack() as stack:
        for lease in (first, beside):
            assert lease.directory is not None
            stack.enter_context(contextlib.closing(Directory(Path(os.fsdecode(lease.directory)), ROOMY, ABOUT)))
        second, third = gateway.grant("same"), other.grant("same")
        assert max(second.disk_bytes, third.disk_bytes) < first.disk_bytes
        gateway.give_back(second)
        noted = {os.fsencode(report.path): report.lease[0] for report in gateway.reports()}
        assert noted == {first.directory: first.disk_bytes, beside.directory: beside.disk_bytes}
        granted = [first, beside, *(gateway.grant(f"{number}") for number in range(6))]
        assert sum(lease.disk_bytes for lease in granted) <= 100_000


def test_what_is_over_age_goes_when_any_model_is_loaded(tmp_path: Path) -> None:
    fill(tmp_path / "idle", 3)
    with contextlib.closing(Directory(tmp_path / "idle", ROOMY, ABOUT)) as found:
        found.index.touch([key_of("idle 1")], now=time.time() - 7200)
    caps = Caps(1 << 30, 1 << 30, free_bytes=0, age_seconds=3600)
    Leases(tmp_path, caps, memory_bytes=1, flush_seconds=1.0).grant("another")
    with contextlib.closing(Directory(tmp_path / "idle", ROOMY, ABOUT)) as found:
        assert [holds(found, f"idle {i}") for i in range(3)] == [True, False, True]


@pytest.mark.parametrize("damage", ["flipped", "removed", "a folder"])
def test_damaged_directories_are_trimmed_too_and_nothing_raises(tmp_path: Path, damage: str) -> None:
    fill(tmp_path / "d", 50)
    index = tmp_path / "d" / "index.sqlite"
    if damage == "flipped":
        data = bytearray(index.read_bytes())
        for place in range(5000, len(data), 300):
            data[place] ^= 255
        index.write_bytes(data)
    else:
        index.unlink()
        if damage == "a folder":
            index.mkdir()
    gateway = leases(tmp_path, disk_bytes=40_000)
    gateway.trim()
    assert gateway.grant("new").disk_bytes >= 0
    if damage != "a folder":
        assert lying(tmp_path) <= 40_000
