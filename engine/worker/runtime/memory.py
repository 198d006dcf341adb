"""MLX's memory settings, and what this process holds."""

from __future__ import annotations

import logging
from typing import Final

import mlx.core as mx

from engine.pressure import own_footprint_bytes
from engine.types import MemoryReport

logger = logging.getLogger(__name__)

CACHE_LIMIT_BYTES = 512 << 20
"""Freed buffers that MLX may keep for reuse. MLX's default has no bound in practice, and every monitor counts it as ours."""
NOTABLE_BYTES: Final = 4 << 20
"""A change of what the process holds that is worth a message."""
RELEASE_SECONDS: Final = 5.0
"""After so long without work, buffers of ended requests go back to the system."""


def configure(wired_limit_bytes: int = 0) -> None:
    """Bound the buffer cache, set the wired limit (0: off), and keep libraries from setting it.

    Several libraries call `mx.set_wired_limit` when they generate, or its older name in `mx.metal`. Together with concurrency and
    a cache that changes quickly, that has brought the whole machine down (ml-explore/mlx #3186). So only a worker's
    configuration sets it, and it is off by default.
    """
    mx.set_cache_limit(CACHE_LIMIT_BYTES)
    if wired_limit_bytes:
        _wire(wired_limit_bytes)
    mx.set_wired_limit = mx.metal.set_wired_limit = _refuse_wired_limit


def _wire(limit: int) -> None:
    """Metal refuses more than its recommended working set. Systems before macOS 15 refuse any limit."""
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
    """Give buffers of ended requests back to the system."""
    mx.clear_cache()


def working_set_bytes() -> int:
    """Metal's recommended limit for all processes together; 0 without Metal."""
    return int(mx.device_info().get("max_recommended_working_set_size", 0))


def sample() -> MemoryReport:
    """What this process holds now."""
    return MemoryReport(
        mx.get_active_memory(),
        mx.get_cache_memory(),
        mx.get_peak_memory(),
        own_footprint_bytes(),
        working_set_bytes(),
    )


def differs(one: MemoryReport, other: MemoryReport) -> bool:
    """Whether the change is worth a message."""
    return abs(one.resident_bytes - other.resident_bytes) >= NOTABLE_BYTES


class Buffers:
    """Gives buffers of ended requests back to the system after a quiet time: a request that comes sooner uses them again."""

    def __init__(self) -> None:
        self._quiet_since: float | None = None
        self._released = True  # there is nothing to give back yet

    def used(self) -> None:
        """There is work."""
        self._quiet_since, self._released = None, False

    def quiet(self, now: float) -> float | None:
        """Nothing uses them at the moment. Seconds until they are given back; None when nothing is left to give."""
        if self._released:
            return None
        if self._quiet_since is None:
            self._quiet_since = now
        left = self._quiet_since + RELEASE_SECONDS - now
        if left > 0:
            return left
        release()
        self._released = True
        return None
