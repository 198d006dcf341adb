"""The store of meetings when it is not as it should be, and what is left in it of a deleted meeting."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from asr_router import app as router_app
from duet.cli.main import app as cli
from duet.errors import DuetError
from duet.settings import Settings
from pipelines.jobs import client as jobs
from pipelines.jobs import store
from pipelines.jobs.client import MeetingClient
from pipelines.jobs.store import StoreDamaged, StoreUnusable, jobs_folder, open_database, set_aside, store_file
from tests.conftest import HomeSettings
from tests.fakes.meetings import asked, opened, start, submit
from tests.fakes.router_service import clip, router_service


@pytest.fixture
def settings(home_settings: HomeSettings) -> Settings:
    return home_settings(embedded=True)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def overwrite(path: Path, place: float, data: bytes) -> None:
    whole = bytearray(path.read_bytes())
    at = int(place * len(whole))
    whole[at : at + len(data)] = data
    path.write_bytes(whole)


def replaced(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


def with_sql(statement: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute(statement)
            connection.commit()

    return change


# What happens to a store that was closed in order -> whether it is refused as damaged, refused otherwise, or still works.
CASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "garbage": (lambda path: path.write_bytes(b"garbage" * 1000), "damaged"),
    "zeros": (lambda path: path.write_bytes(bytes(8192)), "damaged"),
    "a text": (lambda path: path.write_text("CREATE TABLE x;\n" * 200), "damaged"),
    "half": (lambda path: cut(path, path.stat().st_size // 2), "damaged"),
    "its first page": (lambda path: cut(path, 4096), "damaged"),
    "its first 100 bytes": (lambda path: cut(path, 100), "damaged"),
    "a page of rubbish": (lambda path: overwrite(path, 0.5, os.urandom(4096)), "damaged"),
    "its schema overwritten": (lambda path: overwrite(path, 0.0, b"SQLite format 3\0" + bytes(200)), "damaged"),
    "a folder": (replaced(Path.mkdir), "damaged"),
    "a pipe": (replaced(os.mkfifo), "damaged"),
    "a link to nothing": (replaced(lambda path: path.symlink_to("gone")), "refused"),
    "empty": (lambda path: path.write_bytes(b""), "works"),
    "one byte": (
        lambda path: path.write_bytes(b"x"),
        "works",
    ),  # less than a page is no database yet, and SQLite makes one
    "missing": (lambda path: path.unlink(), "works"),
    "another program's": (replaced(with_sql("CREATE TABLE mine (x)")), "works"),
    "a newer one": (with_sql("UPDATE dbos_migrations SET version = 99999"), "works"),
    "a log of rubbish": (lambda path: path.with_name("jobs.sqlite-wal").write_bytes(os.urandom(9000)), "works"),
    "a table gone": (with_sql("DROP TABLE workflow_status"), "refused at once or later"),
}


async def closed_store(settings: Settings) -> Path:
    """A store with one job, as a stopped Duet leaves it."""
    async with opened(settings) as client:
        await submit(client, settings)
    with contextlib.closing(sqlite3.connect(store_file(settings))) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode=DELETE")
    return store_file(settings)


@pytest.mark.parametrize("case", CASES)
async def test_a_store_that_cannot_be_used_is_told_kept_and_given_up_only_by_its_owner(
    settings: Settings, case: str
) -> None:
    path = await closed_store(settings)
    change, expected = CASES[case]
    change(path)
    before = path.read_bytes() if path.is_file() else None
    if expected in ("damaged", "refused"):
        async with asyncio.timeout(20):
            with pytest.raises(StoreUnusable) as caught:
                await MeetingClient(settings).open()
        assert isinstance(caught.value, StoreDamaged) == (expected == "damaged"), caught.value.message
        assert caught.value.message.startswith("the store of meetings ($DUET_HOME/meetings/jobs.sqlite) ")
        assert ("duet repair" in caught.value.message) == (expected == "damaged")
        assert (path.read_bytes() if path.is_file() else None) == before, "it was changed"
    if expected == "damaged":
        moved = set_aside(settings)
        assert moved is not None
        assert moved.name.startswith("jobs.sqlite.damaged-")
        assert (moved.read_bytes() if moved.is_file() else None) == before
        assert not os.path.lexists(path)
        async with opened(settings) as client:
            assert [job.status for job in await client.list(limit=10, offset=0)] == ["queued"]
    if expected == "works":
        async with opened(settings) as client:
            assert [job.status for job in await client.list(limit=10, offset=0)] == ["queued"]
        assert set_aside(settings) is None, "a whole store was given up"
    if expected == "refused at once or later":
        with pytest.raises(DuetError, match="the store of meetings"):
            async with opened(settings) as client:
                await client.list(limit=10, offset=0)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        yield


async def test_a_locked_store_is_told_and_not_given_up(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    path = await closed_store(settings)
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.1)
    with locked(path):
        for use in (open_database, set_aside):
            with pytest.raises(StoreUnusable, match="locked by another process"):
                await asyncio.to_thread(use, settings)
    async with opened(settings) as client:
        assert (await client.get("one")).status == "queued"


async def test_a_store_that_is_locked_later_holds_up_neither_requests_nor_threads(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "ASK_SECONDS", 0.3)
    async with opened(settings) as client:
        await submit(client, settings)
        with contextlib.closing(sqlite3.connect(store_file(settings), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            begun = time.monotonic()
            asked_for = [client.cancel("one") for _ in range(2)] + [
                client.submit(asked(f"more{number}"), Path("x")) for number in range(20)
            ]
            found = await asyncio.gather(*asked_for, return_exceptions=True)
            assert time.monotonic() - begun < 10
            assert {type(error) for error in found} <= {StoreUnusable, FileNotFoundError}, found
            assert isinstance(found[0], StoreUnusable)
            other.execute("ROLLBACK")
        async with asyncio.timeout(60):
            while client._stuck:
                await asyncio.sleep(0.05)
        assert (await client.get("one")).status in ("queued", "cancelled")


async def test_damage_that_is_met_later_is_told_and_the_store_is_opened_anew(settings: Settings) -> None:
    async with opened(settings) as client:
        await submit(client, settings)
        assert not client.is_lost
        with contextlib.closing(sqlite3.connect(store_file(settings))) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with store_file(settings).open("r+b") as file:
            file.write(os.urandom(store_file(settings).stat().st_size))
        with pytest.raises(StoreUnusable):
            for _ in range(20):
                await client.get("one")
        assert client.is_lost


@pytest.mark.parametrize("name", ["a b", "家 ñ", "%41?x#y&z=1", "new\nline", "x" * 200, os.fsdecode(b"\xff\xfe")])
async def test_a_home_of_any_name_has_its_store_in_it(tmp_path: Path, name: str) -> None:
    settings = Settings(home=tmp_path / name, embedded=True)
    settings.home.mkdir()
    async with opened(settings) as client:
        await submit(client, settings)
    assert store_file(settings).is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


async def test_a_home_too_deep_for_its_store_is_told(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path.joinpath(*["x" * 100] * 5), embedded=True)
    with pytest.raises(StoreUnusable, match=r"path has \d+ bytes.*shorter"):
        await MeetingClient(settings).open()


@pytest.fixture
async def quick(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr(router_app, "STORE_SECONDS", 0.1)
    yield


async def test_the_router_serves_clips_beside_a_damaged_store_and_meetings_after_its_repair(
    settings: Settings, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await closed_store(settings)
    path.write_bytes(b"garbage" * 1000)
    async with router_service(settings.home) as router, asyncio.timeout(60):
        assert (await router.send(clip("zh"))).status_code == 200
        answer = await router.client.get("/v1/meetings")
        while "being opened" in answer.text:
            await asyncio.sleep(0.05)
            answer = await router.client.get("/v1/meetings")
        assert answer.status_code == 503
        assert "duet repair" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"]
        ready = (await router.client.get("/ready")).json()
        assert ready["meetings"] is False
        assert "duet repair" in ready["meetings_problem"]
        submitted = await router.client.post("/v1/meetings", files={"file": ("a.wav", clip("zh"))})
        assert submitted.status_code == 503

        monkeypatch.setenv("DUET_HOME", str(settings.home))
        said = CliRunner().invoke(cli, ["repair"])
        assert said.exit_code == 0, said.output
        assert "meetings kept: 1" in said.output
        while (answer := await router.client.get("/v1/meetings")).status_code == 503:
            await asyncio.sleep(0.05)
        assert [job["id"] for job in answer.json()["data"]] == ["one"]
        assert (await router.client.get("/ready")).json()["meetings"] is True
    assert "nothing was changed" in CliRunner().invoke(cli, ["repair"]).output


async def test_a_worker_waits_for_a_store_and_ends_when_it_is_replaced(settings: Settings) -> None:
    path = await closed_store(settings)
    path.write_bytes(b"garbage" * 1000)
    worker = start(settings, "pipelines")
    log = settings.home / "worker.log"
    try:
        async with asyncio.timeout(60):
            while "action=store_unusable" not in log.read_text():
                await asyncio.sleep(0.1)
            assert set_aside(settings) is not None
            while "action=worker_ready" not in log.read_text():
                await asyncio.sleep(0.1)
            path.rename(path.with_name("moved"))
            while worker.poll() is None:
                await asyncio.sleep(0.1)
        assert worker.returncode == 75
        assert log.read_text().count("action=store_unusable") == 1
        # A thread of DBOS may ask the new, empty store once before the worker ends, and logs that in its own way.
        assert not re.search(r'File ".*/pipelines/', log.read_text())
    finally:
        with contextlib.suppress(ProcessLookupError):
            worker.send_signal(signal.SIGKILL)
        worker.wait()


async def test_nothing_of_a_deleted_job_is_left_in_the_store(settings: Settings) -> None:
    async with opened(settings) as client, opened(settings) as other:
        for number in range(60):
            await submit(client, settings, f"zorbigon{number:03d}")

        async def look() -> None:
            while True:  # a reader, as the worker is one
                await other.list(limit=5, offset=0)

        looking = asyncio.create_task(look())
        for number in range(0, 60, 7):
            await client.delete(f"zorbigon{number:03d}")
        looking.cancel()
        await asyncio.wait([looking])
        content = b"".join(path.read_bytes() for path in settings.home.glob("meetings/**/*") if path.is_file())
        for number in range(60):
            assert (f"zorbigon{number:03d}".encode() in content) == (number % 7 != 0), number
        assert len(await client.list(limit=100, offset=0)) == 51
        assert all(path.name.startswith("zorbigon") for path in jobs_folder(settings).iterdir())


@pytest.mark.parametrize("inside", ["the folder itself", "artifacts", "outputs"])
async def test_a_deletion_follows_no_link(settings: Settings, tmp_path: Path, inside: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    async with opened(settings) as client:
        folder = await submit(client, settings)
        if inside == "the folder itself":
            folder.path.rename(elsewhere)
            folder.path.symlink_to(elsewhere)
        else:
            (folder.path / inside).rename(elsewhere)
            (elsewhere / "precious").write_text("x")
            (folder.path / inside).symlink_to(elsewhere)
        kept = sorted(path.name for path in elsewhere.iterdir())
        await client.delete("one")
        assert sorted(path.name for path in elsewhere.iterdir()) == kept
        assert not os.path.lexists(folder.path)
        assert await client.list(limit=10, offset=0) == []
