"""The engine: `python -m engine`. Settings from $DUET_HOME/config.toml and the environment."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from duet import service
from duet.http.server import run_server
from duet.keys import api_key
from duet.settings import Settings
from engine.app import create_app
from engine.catalogue import Catalogue
from engine.downloads import Downloads
from engine.pool import Pool


def serve(settings: Settings) -> int:
    downloads = Downloads(_hub_cache(), settings.engine.hub_endpoint)
    pool = Pool(settings, Catalogue(settings, downloads), downloads)

    @asynccontextmanager
    async def life() -> AsyncIterator[None]:
        await pool.open()
        try:
            yield
        finally:
            await downloads.close()  # first: its thread would hold up the exit
            await pool.close()

    app = create_app(pool, settings, key=api_key(settings.home), life=life())
    return run_server(app, settings.engine.host, settings.engine.port, log_level=settings.log_level)


def _hub_cache() -> Path:
    """Where the hub's library keeps its files, by its own rules (HF_HOME, HF_HUB_CACHE)."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


if __name__ == "__main__":
    sys.exit(service.run("engine", serve))
