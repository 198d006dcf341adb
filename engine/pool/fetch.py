"""A model that is not here yet is fetched from the hub. Waiting streams and the log see the progress."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from duet.errors import ModelNotFound, ModelUnusable
from engine.cards import Card
from engine.downloads import Downloads
from engine.folders.inspection import inspect
from engine.pool.slot import Slot

logger = logging.getLogger(__name__)


async def fetch(card: Card, downloads: Downloads, slot: Slot, *, allowed: bool) -> Card:
    """The card with its folder, and with the roles and the size that the folder turns out to have. Raises `ModelNotFound` unless
    it is `allowed`, and `ModelUnusable` if the folder cannot be used."""
    if card.repo is None or not allowed:
        raise ModelNotFound(f"{card.id} is not on this machine and downloads are off (engine.hub)", param="model")
    slot.state, slot.progress = "downloading", f"downloading {card.repo}"
    path = await downloads.fetch(card.repo, card.revision, on_progress=_reporter(card.repo, slot))
    found = await asyncio.to_thread(inspect, path, card.repo)
    if found.problem:
        raise ModelUnusable(f"{card.id} cannot be used: {found.problem}", param="model")
    return replace(card, path=path, roles=found.roles, bytes_on_disk=found.weight_bytes)


def _reporter(repo: str, slot: Slot) -> Callable[[int, int], None]:
    """Progress for the waiting stream, and a log line every tenth."""
    logged = -1

    def report(done: int, total: int) -> None:
        nonlocal logged
        percent = 100 * done // max(total, 1)
        slot.progress = f"downloading {repo}: {percent}% of {total / 1e9:.2f} GB"
        if percent // 10 > logged:
            logged = percent // 10
            logger.info(
                "downloading", extra={"action": "downloading", "repo": repo, "percent": percent, "bytes": total}
            )

    return report
