"""MLX's own memory knobs, in one place."""

from __future__ import annotations

import logging

import mlx.core as mx

logger = logging.getLogger(__name__)

CACHE_LIMIT_BYTES = 512 << 20
"""Freed buffers that MLX may keep for reuse. Its default is unbounded in practice and counts as ours in every monitor."""


def configure() -> None:
    """Bound the buffer cache and take the wired limit out of the libraries' hands.

    Several libraries call `mx.set_wired_limit` when they generate. With concurrency and cache churn that has brought
    the whole machine down (ml-explore/mlx #3186), so in our workers it is a switch of ours alone, and off.
    """
    mx.set_cache_limit(CACHE_LIMIT_BYTES)
    mx.set_wired_limit = _refuse_wired_limit


def _refuse_wired_limit(limit: int) -> int:
    logger.debug("ignored a library's wired limit of %d bytes", limit, extra={"action": "wired_limit_ignored"})
    return 0


def release() -> None:
    """Give buffers of ended requests back to the system. Called when the worker falls idle."""
    mx.clear_cache()
