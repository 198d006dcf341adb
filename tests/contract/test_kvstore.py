"""KV directories on a real disk: damage, limits, locks and deaths are misses, never a wrong byte and never an error."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.kvstore import notes, survey
from engine.kvstore.directory import Directory, Limits
from engine.kvstore.index import Damaged, Entry, IndexBusy, Media
from engine.kvstore.lock import Owned, Unusable
from tests.contract.kvstore import ABOUT, ROOMY, add, content, entry, files, holds, key_of


@pytest.fixture(autouse=True)
def one_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget is one day's: no test may meet a midnight."""
    monkeypatch.setattr(notes, "today", lambda: "2026-01-01")


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
from engine.kvstore.directory import Directory, Limits
from tests.contract.kvstore import ABOUT, content, entry
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


@pytest.mark.parametrize("place", ["files", "files/ab"])
@pytest.mark.parametrize("act", ["sweep", "clear"])
def test_a_link_among_its_folders_is_removed_and_not_followed(tmp_path: Path, place: str, act: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "ab").mkdir(parents=True)
    for name in ("precious", "ab/precious"):
        (elsewhere / name).write_text("x")
    with contextlib.closing(Directory(tmp_path / "kv", ROOMY, ABOUT)) as found:
        link = tmp_path / "kv" / place
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(elsewhere)
        getattr(found, act)()
        add(found, 1)
        assert holds(found, 1)
        assert not link.is_symlink()
    assert (elsewhere / "precious").exists()
    assert (elsewhere / "ab" / "precious").exists()
