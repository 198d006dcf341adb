"""KV directories on a real disk: damage, limits, locks and deaths are misses, never a wrong byte and never an error."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.kvstore import blobs, notes, survey
from engine.kvstore.directory import Directory, Limits
from engine.kvstore.index import Damaged, Entry, IndexBusy, Media
from engine.kvstore.leases import Caps, Leases
from engine.kvstore.lock import Owned, Unusable

ABOUT = {"model": "m"}
ROOMY = Limits(disk_bytes=1 << 30, write_bytes_a_day=1 << 34, free_bytes=0)


@pytest.fixture(autouse=True)
def one_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget is one day's: no test may meet a midnight."""
    monkeypatch.setattr(notes, "today", lambda: "2026-01-01")


def key_of(name: object) -> bytes:
    return hashlib.sha256(str(name).encode()).digest()


def entry(name: object, *, parent: bytes = b"root", tokens: bytes = b"", start: int = 0, tip: bool = False) -> Entry:
    tokens = tokens or str(name).encode().ljust(8, b"\0")[:8]
    return Entry(key_of(name), "block", parent, start, start + len(tokens) // 4, tokens, (), 0, 1.0, tip)


def content(name: object, size: int = 4000) -> dict[str, blobs.Tensor]:
    data = (str(name).encode() * size)[:size]
    return {"0.k": blobs.Tensor("U8", (size,), memoryview(data))}


def add(found: Directory, name: object, size: int = 4000) -> bool:
    return found.add(entry(name), content(name, size), {"fact": "1"}) is not None


def holds(found: Directory, name: object, size: int = 4000) -> bool:
    read = found.read(key_of(name))
    return read is not None and bytes(read[0]["0.k"].data) == bytes(content(name, size)["0.k"].data)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("files/*/*") if path.is_file()]


def test_what_is_kept_is_read_as_it_was_also_by_the_next_process(tmp_path: Path) -> None:
    with contextlib.closing(Directory(tmp_path / "kv", ROOMY, ABOUT)) as found:
        assert all(add(found, i) for i in range(20))
        assert found.contents.entries == 20
    with contextlib.closing(Directory(tmp_path / "kv", ROOMY, ABOUT)) as found:
        assert all(holds(found, i) for i in range(20))
        assert found.sweep() == 0


@pytest.mark.parametrize("place", [0.0, 0.01, 0.3, 0.9999])
def test_a_flipped_bit_anywhere_is_a_miss(tmp_path: Path, place: float) -> None:
    with contextlib.closing(Directory(tmp_path / "kv", ROOMY, ABOUT)) as found:
        add(found, 1)
        path = found.file(key_of(1))
        data = bytearray(path.read_bytes())
        data[int(place * (len(data) - 1))] ^= 4
        path.write_bytes(data)
        assert found.read(key_of(1)) is None


@pytest.mark.parametrize("size", [0, 1, 7, 8, 100, 4000])
def test_a_file_cut_short_is_a_miss(tmp_path: Path, size: int) -> None:
    with contextlib.closing(Directory(tmp_path / "kv", ROOMY, ABOUT)) as found:
        add(found, 1)
        path = found.file(key_of(1))
        path.write_bytes(path.read_bytes()[:size])
        assert found.read(key_of(1)) is None


def test_a_file_in_the_place_of_another_is_a_miss(tmp_path: Path) -> None:
    with contextlib.closing(Directory(tmp_path / "kv", ROOMY, ABOUT)) as found:
        add(found, 1)
        add(found, 2)
        found.file(key_of(1)).write_bytes(found.file(key_of(2)).read_bytes())
        assert found.read(key_of(1)) is None
        assert holds(found, 2)


def test_the_cap_holds_after_every_write_and_the_longest_unused_go(tmp_path: Path) -> None:
    limits = Limits(disk_bytes=50_000, write_bytes_a_day=1 << 30, free_bytes=0)
    with contextlib.closing(Directory(tmp_path / "kv", limits, ABOUT)) as found:
        for i in range(40):
            assert add(found, i)
            found.index.touch([key_of(0)], now=time.time() + 60 * i)
            assert sum(path.stat().st_size for path in files(tmp_path / "kv")) <= limits.disk_bytes
        assert holds(found, 0)
        assert holds(found, 39)
        assert found.read(key_of(1)) is None
        assert not add(found, "large", 60_000)


@pytest.mark.parametrize("tokens", [200, 1024, 4096])
def test_an_entry_counts_with_what_its_row_takes(tmp_path: Path, tokens: int) -> None:
    limits = Limits(disk_bytes=400_000, write_bytes_a_day=1 << 30, free_bytes=0)
    with contextlib.closing(Directory(tmp_path / "kv", limits, ABOUT)) as found:
        for i in range(900):
            found.add(entry(i, parent=key_of(f"parent {i}"), tokens=os.urandom(tokens)), content(i, 100), {})
    index = (tmp_path / "kv/index.sqlite").stat().st_size
    taken = index + sum(path.stat().st_size for path in files(tmp_path / "kv"))
    assert taken <= 1.2 * limits.disk_bytes
    with contextlib.closing(Directory(tmp_path / "kv", limits, ABOUT)) as found:
        assert taken >= 0.7 * found.contents.bytes


def test_what_is_there_already_is_not_written_again_and_needs_no_budget(tmp_path: Path) -> None:
    limits = Limits(disk_bytes=1 << 30, write_bytes_a_day=6_000, free_bytes=0)
    with contextlib.closing(Directory(tmp_path / "kv", limits, ABOUT)) as found:
        assert found.add(entry(1), content(1), {}) == files(tmp_path / "kv")[0].stat().st_size
        counted = found.contents.written_today
        assert found.add(entry(2), content(2), {}) is None
        assert found.add(entry(1), content(1), {}) == 0
        assert found.contents.written_today == counted


def test_the_budget_of_a_day_holds_over_restarts(tmp_path: Path) -> None:
    limits = Limits(disk_bytes=1 << 30, write_bytes_a_day=20_000, free_bytes=0)
    kept = 0
    for run in range(3):
        with contextlib.closing(Directory(tmp_path / "kv", limits, ABOUT)) as found:
            kept += sum(add(found, f"{run} {i}") for i in range(10))
            assert found.contents.written_today <= limits.write_bytes_a_day
    assert kept == 4


def test_entries_over_age_go(tmp_path: Path) -> None:
    with contextlib.closing(Directory(tmp_path / "kv", ROOMY, ABOUT)) as found:
        add(found, "old")
        found.index.touch([key_of("old")], now=time.time() - 31 * 86_400)
        add(found, "new")
    with contextlib.closing(Directory(tmp_path / "kv", ROOMY, ABOUT)) as found:
        found.sweep()
        assert found.read(key_of("old")) is None
        assert holds(found, "new")


def test_a_longer_block_takes_the_place_of_its_beginnings(tmp_path: Path) -> None:
    with contextlib.closing(Directory(tmp_path / "kv", ROOMY, ABOUT)) as found:
        for name, tokens in (("short", b"aaaabbbb"), ("other", b"aaaacccc"), ("long", b"aaaabbbbcccc")):
            found.add(entry(name, tokens=tokens, tip=True), content(name), {})
        assert found.read(key_of("short")) is None
        assert holds(found, "other")
        assert holds(found, "long")


def test_media_are_part_of_an_entry(tmp_path: Path) -> None:
    with contextlib.closing(Directory(tmp_path / "kv", ROOMY, ABOUT)) as found:
        media = (Media(2, 9, b"x" * 32), Media(20, 30, b"y" * 32))
        found.index.add(Entry(b"k" * 32, "checkpoint", b"root", 0, 40, b"", media, 1, 0.0, False), now=1.0)
        assert found.index.children([b"root"], "checkpoint")[0].media == media


def test_only_one_process_owns_a_directory_and_its_death_frees_it(tmp_path: Path) -> None:
    script = (
        "import sys,time; from pathlib import Path; from engine.kvstore.directory import *\n"
        f"d = Directory(Path({str(tmp_path / 'kv')!r}), Limits(1<<30, 1<<30), {{}}); print('mine', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "mine\n"
        with pytest.raises(Owned):
            Directory(tmp_path / "kv", ROOMY, ABOUT)
        assert survey.report(tmp_path / "kv").owned
        owner.kill()
    Directory(tmp_path / "kv", ROOMY, ABOUT).close()


@pytest.mark.parametrize("damage", ["garbage", "emptied", "cut", "removed", "another version"])
def test_a_damaged_index_begins_anew_and_leaves_no_orphan(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "kv"
    with contextlib.closing(Directory(folder, ROOMY, ABOUT)) as found:
        for i in range(50):
            add(found, i)
        if damage == "another version":
            found.index._db.execute("PRAGMA user_version=99")
    index = folder / "index.sqlite"
    match damage:
        case "garbage":
            index.write_bytes(os.urandom(20_000))
        case "emptied":
            index.write_bytes(b"")
        case "cut":
            index.write_bytes(index.read_bytes()[:5000])
        case "removed":
            index.unlink()
    with contextlib.closing(Directory(folder, ROOMY, ABOUT)) as found:
        with contextlib.suppress(Damaged):
            assert add(found, "new")
        if damage != "cut":  # a page that is gone may be one that is not read
            assert holds(found, "new")
            assert len(files(folder)) == found.contents.entries == 1


@pytest.mark.parametrize("about", [b"", b"[1]", None])
def test_a_directory_begins_anew_when_its_index_and_what_it_says_of_itself_are_damaged(
    tmp_path: Path, about: bytes | None
) -> None:
    folder = tmp_path / "kv"
    with contextlib.closing(Directory(folder, ROOMY, ABOUT)) as found:
        add(found, "old")
    (folder / "about.json").unlink() if about is None else (folder / "about.json").write_bytes(about)
    (folder / "index.sqlite").write_bytes(os.urandom(20_000))
    with contextlib.closing(Directory(folder, ROOMY, ABOUT)) as found:
        assert add(found, "new")
        assert len(files(folder)) == found.contents.entries == 1
    assert (notes.read_about(folder) or {})["model"] == "m"


def test_a_directory_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unusable, match="cannot be used"):
        Directory(tmp_path / "file" / "kv", ROOMY, ABOUT)


def test_a_removed_folder_is_made_again(tmp_path: Path) -> None:
    import shutil

    with contextlib.closing(Directory(tmp_path / "kv", ROOMY, ABOUT)) as found:
        add(found, 1)
        shutil.rmtree(tmp_path / "kv" / "files")
        assert found.read(key_of(1)) is None
        assert add(found, 2)
        assert holds(found, 2)


def test_too_little_free_space_keeps_nothing(tmp_path: Path) -> None:
    limits = Limits(disk_bytes=1 << 30, write_bytes_a_day=1 << 30, free_bytes=1 << 60)
    with contextlib.closing(Directory(tmp_path / "kv", limits, ABOUT)) as found:
        assert not add(found, 1)


WRITER = """
import sys
from pathlib import Path
from tests.contract.test_kvstore import *
found = Directory(Path(sys.argv[1]), Limits(8 << 20, 1 << 40, 0), ABOUT)
found.sweep()
print("writing", flush=True)
i = int(sys.argv[2]) * 10**6
while True:
    i += 1
    found.add(entry(i), content(i, 1 << 20), {}, pause=lambda: None)
"""


def test_a_kill_inside_a_write_costs_that_file_only(tmp_path: Path) -> None:
    """`make kv-kills` does this 200 times. After each kill the directory must open, hold nothing damaged, keep its cap and
    have no orphan."""
    folder, moments = tmp_path / "kv", random.Random(1)
    for number in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(number)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "writing\n"
            try:
                stop_inside_a_write(writer.pid, folder, moments)
            finally:
                writer.kill()
        assert any(path.stat().st_size > 0 for path in half_written(folder)), "what the kill leaves behind"
        with contextlib.closing(Directory(folder, Limits(8 << 20, 1 << 40, 0), ABOUT)) as found:
            found.sweep()
            assert not half_written(folder)
            assert len(files(folder)) == found.contents.entries
            assert sum(path.stat().st_size for path in files(folder)) <= 8 << 20
            assert list(survey.damaged_files(folder)) == []


def stop_inside_a_write(pid: int, folder: Path, moments: random.Random) -> None:
    """Stop a child of ours when a file of `folder` is half written: nobody's pace decides whether a kill lands there then."""
    until = time.monotonic() + 50
    while time.monotonic() < until:
        os.kill(pid, signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
        if any(path.stat().st_size > 0 for path in half_written(folder)):
            return
        os.kill(pid, signal.SIGCONT)
        time.sleep(moments.uniform(0.0, 0.003))
    pytest.fail("the writer writes nothing")


def half_written(folder: Path) -> list[Path]:
    return list(folder.glob("files/*/.*"))


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
            stack.enter_context(contextlib.closing(Directory(Path(lease.directory), ROOMY, ABOUT)))
            granted.append(lease)
        assert sum(lease.disk_bytes for lease in granted) <= 100_000
        assert sum(lease.write_bytes for lease in granted) <= 100_000


def test_two_workers_with_the_same_weights_do_not_hide_each_other_s_lease(tmp_path: Path) -> None:
    gateway, other = leases(tmp_path), leases(tmp_path)
    first, beside = gateway.grant("same"), gateway.grant("beside")
    with contextlib.ExitStack() as stack:
        for lease in (first, beside):
            assert lease.directory is not None
            stack.enter_context(contextlib.closing(Directory(Path(lease.directory), ROOMY, ABOUT)))
        second, third = gateway.grant("same"), other.grant("same")
        assert max(second.disk_bytes, third.disk_bytes) < first.disk_bytes
        gateway.give_back(second)
        noted = {str(report.path): report.lease[0] for report in gateway.reports()}
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


def test_a_full_or_busy_disk_costs_no_entry(tmp_path: Path) -> None:
    import sqlite3

    with contextlib.closing(Directory(tmp_path / "kv", ROOMY, ABOUT)) as found:
        add(found, 1)
        with contextlib.closing(sqlite3.connect(tmp_path / "kv" / "index.sqlite", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(IndexBusy):
                found.index.touch([key_of(1)], now=time.time() + 1000)
            other.execute("ROLLBACK")
        assert holds(found, 1)
    with contextlib.closing(Directory(tmp_path / "kv", ROOMY, ABOUT)) as found:
        assert holds(found, 1)


def test_the_budget_outlives_clearing_and_damage(tmp_path: Path) -> None:
    limits = Limits(disk_bytes=1 << 30, write_bytes_a_day=20_000, free_bytes=0)
    with contextlib.closing(Directory(tmp_path / "kv", limits, ABOUT)) as found:
        kept = sum(add(found, i) for i in range(10))
        found.clear()
        assert not any(add(found, i) for i in range(10))
        found.rebuild()
        assert not add(found, 1)
    assert kept == 4


def test_ends_of_a_sequence_go_before_its_beginning(tmp_path: Path) -> None:
    limits = Limits(disk_bytes=30_000, write_bytes_a_day=1 << 30, free_bytes=0)
    with contextlib.closing(Directory(tmp_path / "kv", limits, ABOUT)) as found:
        names = [f"block {i}" for i in range(10)]
        for i, name in enumerate(names):
            found.add(entry(name, start=256 * i), content(name), {})
        left = [name for name in names if holds(found, name)]
        assert left == [*names[: len(left) - 1], names[-1]]


def test_clear_and_reports_work_with_nothing_running(tmp_path: Path) -> None:
    with contextlib.closing(Directory(tmp_path / "a", ROOMY, {"model": "x"})) as found:
        add(found, 1)
    with contextlib.closing(Directory(tmp_path / "b", ROOMY, {"model": "y"})) as found:
        add(found, 2)
    assert survey.clear(tmp_path, "x") == 1
    reports = {report.model: report.contents.entries for report in map(survey.report, survey.directories(tmp_path))}
    assert reports == {"x": 0, "y": 1}
