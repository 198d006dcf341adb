"""Starting processes: what a load that is stopped gives back, and a spare that cannot live."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from duet.settings import EngineSettings, Settings
from duet.supervise.child import Child
from engine.catalogue import Catalogue
from engine.downloads import Downloads
from engine.fleet import spare as spare_module
from engine.fleet.spare import Spare
from engine.kvstore.leases import Lease
from engine.pool.launcher import Launcher
from tests.fakes.engine_service import WORKER, model_folder


async def test_a_load_that_is_stopped_while_it_gets_its_lease_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(tmp_path / "models", "a")
    settings = Settings(home=tmp_path, engine=EngineSettings(model_dirs=(tmp_path / "models",)))
    card = Catalogue(settings, Downloads(tmp_path, "http://127.0.0.1:9"), memory_bytes=64 << 30).resolve("a")
    launcher = Launcher(settings, WORKER, total_bytes=64 << 30)
    begun, stopped = threading.Event(), threading.Event()
    granted = Lease(1, directory=os.fsencode(tmp_path / "kv"))
    came_back: asyncio.Queue[Lease] = asyncio.Queue()

    def grant(fingerprint: str) -> Lease:
        begun.set()
        assert stopped.wait(10)
        return granted

    monkeypatch.setattr("engine.pool.launcher.fingerprint", lambda path: "f")
    monkeypatch.setattr(launcher.leases, "grant", grant)
    monkeypatch.setattr(launcher.leases, "give_back", came_back.put_nowait)
    load = asyncio.create_task(launcher.start(card, folder, 0, left_bytes=0, on_process=lambda pid: None))
    await asyncio.to_thread(begun.wait, 10)
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    stopped.set()
    async with asyncio.timeout(10):
        assert await came_back.get() == granted


async def test_a_spare_that_dies_at_once_is_followed_by_another_later_and_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def delay(failures_in_a_row: int) -> float:
        asked.append(failures_in_a_row)
        return 0.0 if failures_in_a_row < 3 else 1000.0

    started: list[str] = []
    start = spare_module.new_process

    async def noted(module: str, name: str) -> Child[Any]:
        started.append(module)
        return await start(module, name)

    monkeypatch.setattr(spare_module, "restart_delay_seconds", delay)
    monkeypatch.setattr(spare_module, "new_process", noted)
    spare = Spare("tests.fakes.no_such_module")
    for number in range(1, 4):
        await spare.keep()
        assert len(started) == number
        async with asyncio.timeout(20):
            while spare.ready:
                await asyncio.sleep(0.02)
    for _ in range(3):
        await spare.keep()
        assert not spare.ready
    assert len(started) == 3
    assert asked == [1, 2, 3]
