"""The real gateway on a free port of this process, over fake worker processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from duet.errors import ModelNotFound
from duet.settings import EngineSettings, Settings
from engine.app import create_app
from engine.catalogue import Catalogue
from engine.downloads import Downloads
from engine.pool import Pool
from engine.pressure import Reading
from tests.folders import write_folder

KEY = "test-key"
WORKER = "tests.fakes.engine_worker"


@dataclass(frozen=True)
class EngineService:
    url: str
    client: httpx.AsyncClient
    pool: Pool

    async def chat(self, said: str, model: str = "talker", **options: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json=chat_body(said, model, **options))

    async def status(self, model: str = "talker") -> dict[str, int]:
        """What the worker says about itself: live, cancelled, pid, freed, paused."""
        said = await self.chat("status", model)
        while said.status_code == 429:  # a request that has left still counts for a moment
            await asyncio.sleep(0.02)
            said = await self.chat("status", model)
        answer = said.json()["choices"][0]["message"]["content"].rstrip("!")
        return {name: int(value) for name, value in (item.split("=") for item in answer.split())}


def chat_body(said: str, model: str = "talker", **options: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": said}], **options}


def model_folder(root: Path, name: str, *, model_type: str = "qwen3", **plan: Any) -> Path:
    """A folder that the engine finds as a model, and that the fake worker loads as `plan` says."""
    folder = write_folder(root / name, {"model_type": model_type})
    (folder / "fake.json").write_text(json.dumps(plan))
    return folder


def starts(folder: Path) -> list[int]:
    """Process ids of the workers that were started for a model folder, in order."""
    log = folder / "starts.log"
    return [int(line) for line in log.read_text().split()] if log.exists() else []


async def leave(asking: asyncio.Task[httpx.Response]) -> None:
    """Let the client of a request under way close its connection."""
    assert not asking.done()
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()


def make_settings(home: Path, models: Path, **engine: Any) -> Settings:
    alone = {"hub": False, "resident": (), "warm_spare": False}
    return Settings(home=home, engine=EngineSettings(model_dirs=(models,), **{**alone, **engine}))


class FakeHub:
    """Replaces `Downloads`: a hub with one repo, `owner/far`, which arrives when `arrived` is set."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self.arrived = asyncio.Event()

    def snapshots(self) -> list[tuple[str, Path]]:
        folder = self._cache / "far"
        return [("owner/far", folder)] if folder.exists() else []

    async def fetch(self, repo: str, revision: str | None = None, *, on_progress: Any) -> Path:
        if repo != "owner/far":
            raise ModelNotFound(f"the hub has no model {repo}", param="model")
        on_progress(30, 100)
        await self.arrived.wait()
        return model_folder(self._cache, "far")


class FakeMachine:
    """Replaces this machine's memory. A test may change `reading` at any time; by default the machine is large and empty."""

    def __init__(self, reading: Reading | None = None) -> None:
        self.reading = reading or Reading(total_bytes=64 << 30, available_bytes=60 << 30)

    def __call__(self) -> Reading:
        return self.reading


@asynccontextmanager
async def engine_service(
    home: Path, models: Path, *, hub: FakeHub | None = None, machine: FakeMachine | None = None, **engine: Any
) -> AsyncIterator[EngineService]:
    settings = make_settings(home, models, **({"hub": True} if hub else {}), **engine)
    downloads: Any = hub or Downloads(home / "hub", settings.engine.hub_endpoint)
    machine = machine or FakeMachine()
    catalogue = Catalogue(settings, downloads, memory_bytes=machine.reading.total_bytes)
    pool = Pool(settings, catalogue, downloads, worker_module=WORKER, probe=machine)
    await pool.open()
    app = create_app(pool, settings, key=KEY)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(10):
            while not server.started:
                await asyncio.sleep(0.01)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30, trust_env=False) as client:
            yield EngineService(url, client, pool)
    finally:
        server.should_exit = True
        await serving
        await pool.close()
