"""The cache of a worker that keeps no KV: every prompt is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.types import CacheNote, KvReport
from engine.worker.caches import Cache
from engine.worker.kvcache.messages import Answer
from engine.worker.kvcache.session import CacheRequest


class AbsentCache:
    """The methods that the loop and the runner call of a `GuardedCache`: all of them find and keep nothing."""

    has_state = False

    def open(self, request: CacheRequest, tokens: Sequence[int]) -> bool:
        return True

    def ready(self, request_id: str) -> bool:
        return True

    def restore(self, request_id: str, *, capacity: int) -> tuple[Cache, int] | None:
        return None

    def at_checkpoint(self, request_id: str, cache: Cache, position: int) -> None:
        return None

    def keep(self, request_id: str, tokens: Sequence[int], cache: Cache, *, ended: bool, forced: bool = False) -> None:
        return None

    def close(self, request_id: str) -> None:
        return None

    def note(self, request_id: str) -> CacheNote:
        return CacheNote(reason="disabled")

    def checkpoints_at(self, request_id: str) -> tuple[int, ...]:
        return ()

    @property
    def report(self) -> KvReport:
        return KvReport()

    def tend(self, *, busy: bool) -> float | None:
        return None

    def free_memory(self) -> None:
        return None

    def clear(self) -> None:
        return None

    def flush(self, seconds: float, answers: Callable[[], Answer | None]) -> bool:
        return True
