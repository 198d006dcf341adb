"""The cache that the worker's loop holds: a fault in it costs the cache, and no request.

After a fault the requests it was for are looked up and kept no more: for them everything is a miss. After `FAULTS` in a row the
cache is off, and its report says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final, ParamSpec, TypeVar

from engine.types import CacheNote, KvReport
from engine.worker.caches import Cache
from engine.worker.kvcache.cache import PrefixCache
from engine.worker.kvcache.messages import Answer, Found, Read, Saved, Seen
from engine.worker.kvcache.session import CacheRequest

logger = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

FAULTS: Final = 3


class GuardedCache:
    """The methods of `PrefixCache`, which documents them. None of them raises."""

    def __init__(self, cache: PrefixCache) -> None:
        self._cache = cache
        self._faults = 0
        self._broken = ""

    def open(self, request: CacheRequest, tokens: Sequence[int]) -> bool:
        return self._guarded(True, [request.id], self._cache.open, request, tokens)

    def ready(self, request_id: str) -> bool:
        return self._guarded(True, [request_id], self._cache.ready, request_id)

    def restore(self, request_id: str, *, capacity: int) -> tuple[Cache, int] | None:
        return self._guarded(None, [request_id], self._cache.restore, request_id, capacity=capacity)

    def at_checkpoint(self, request_id: str, cache: Cache, position: int) -> None:
        self._guarded(None, [request_id], self._cache.at_checkpoint, request_id, cache, position)

    def keep(self, request_id: str, tokens: Sequence[int], cache: Cache, *, ended: bool, forced: bool = False) -> None:
        kept = self._cache.keep
        if self._guarded(False, [request_id], kept, request_id, tokens, cache, ended=ended, forced=forced):
            self._faults = 0

    def close(self, request_id: str) -> None:
        self._guarded(None, [request_id], self._cache.close, request_id)

    def note(self, request_id: str) -> CacheNote:
        return self._cache.note(request_id)

    def checkpoints_at(self, request_id: str) -> tuple[int, ...]:
        return self._cache.checkpoints_at(request_id)

    # Answers of the disk's thread -----------------------------------------------------------------------------------

    def read(self, answer: Read) -> None:
        self._guarded(None, [], self._cache.read, answer)

    def found(self, answer: Found) -> list[str]:
        """All that waited for the answer go on, whatever fails."""
        waiting, behind = self._cache.waiting_for(answer.id)
        return self._guarded([*waiting, *behind], waiting, self._cache.found, answer)

    def seen(self, answer: Seen) -> None:
        self._guarded(None, [], self._cache.seen, answer)

    def saved(self, answer: Saved) -> None:
        self._guarded(None, [], self._cache.saved, answer)

    def cleared(self) -> None:
        self._cache.cleared()

    # The tiers ------------------------------------------------------------------------------------------------------

    @property
    def has_state(self) -> bool:
        return self._cache.has_state

    @property
    def report(self) -> KvReport:
        report = self._cache.report
        if self._broken:
            report.off = self._broken
        return report

    def tend(self, *, busy: bool) -> float | None:
        return self._guarded(None, [], self._cache.tend, busy=busy)

    def free_memory(self) -> None:
        self._guarded(None, [], self._cache.free_memory)

    def clear(self) -> None:
        self._cache.clear()

    def flush(self, seconds: float, answers: Callable[[], Answer | None]) -> bool:
        return self._cache.flush(seconds, answers)

    # Inside ---------------------------------------------------------------------------------------------------------

    def _guarded(
        self, miss: T, request_ids: Sequence[str], method: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What `method` returns, or `miss` when it fails or the cache is off. `request_ids` are the requests it is for."""
        if self._broken:
            return miss
        try:
            return method(*args, **kwargs)
        except Exception as error:
            logger.exception("the KV cache failed", extra={"action": "kv_failed"})
            for request_id in request_ids:
                self._cache.forget(request_id)
            self._faults += 1
            if self._faults >= FAULTS:
                self._broken = f"{type(error).__name__} in {method.__name__}; the log says more"
                self._cache.abandon()
            return miss
