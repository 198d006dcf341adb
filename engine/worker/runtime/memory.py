"""MLX's own memory knobs, and what this process holds, in one place."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

import mlx.core as mx

from engine.pressure import own_footprint_bytes
from engine.types import MemoryReport

logger = logging.getLogger(__name__)

CACHE_LIMIT_BYTES = 512 << 20
"""Freed buffers that MLX may keep for reuse. Its default is unbounded in practice and counts as ours in every monitor."""
REPORT_SECONDS: Final = 1.0
NOTABLE_BYTES: Final = 4 << 20
"""A change that is worth a message."""


def configure(wired_limit_bytes: int = 0) -> None:
    """Bound the buffer cache, set the wired limit (0: off) and take it out of the libraries' hands.

    Several libraries call `mx.set_wired_limit` when they generate, or its older name in `mx.metal`. With concurrency and cache
    churn that has brought the whole machine down (ml-explore/mlx #3186), so in our workers it is a switch of ours alone, and
    off by default.
    """
    mx.set_cache_limit(CACHE_LIMIT_BYTES)
    if wired_limit_bytes:
        _wire(wired_limit_bytes)
    mx.set_wired_limit = mx.metal.set_wired_limit = _refuse_wired_limit


def _wire(limit: int) -> None:
    """Metal refuses more than its recommended working set, and systems before macOS 15 refuse any."""
    wired = min(limit, working_set_bytes() or limit)
    try:
        mx.set_wired_limit(wired)
    except (ValueError, RuntimeError) as error:
        logger.warning("the wired limit is off: %s", error, extra={"action": "wired_limit_refused"})
    else:
        logger.info("wired limit", extra={"action": "wired_limit_set", "bytes": wired})


def _refuse_wired_limit(limit: int) -> int:
    logger.debug("ignored a library's wired limit of %d bytes", limit, extra={"action": "wired_limit_ignored"})
    return 0


def release() -> None:
    """Give buffers of ended requests back to the system. Called when the worker falls idle."""
    mx.clear_cache()


def working_set_bytes() -> int:
    """What Metal recommends all its users to stay below; 0 where there is no Metal."""
    return int(mx.device_info().get("max_recommended_working_set_size", 0))


class Reporter:
    """Tells the gateway what this process holds: when it changes notably, every second at most. Owned by the loop."""

    def __init__(self, send: Callable[[MemoryReport], None]) -> None:
        self._send = send
        self._working_set_bytes = working_set_bytes()
        self._said = MemoryReport()
        self._said_at = 0.0

    def report(self, *, now: bool = False) -> None:
        """`now`: the loop is about to wait, and what it holds then holds for long."""
        if not now and time.monotonic() - self._said_at < REPORT_SECONDS:
            return
        self._said_at = time.monotonic()
        found = MemoryReport(
            mx.get_active_memory(),
            mx.get_cache_memory(),
            mx.get_peak_memory(),
            own_footprint_bytes(),
            self._working_set_bytes,
        )
        if abs(found.resident_bytes - self._said.resident_bytes) >= NOTABLE_BYTES:
            self._said = found
            self._send(found)
