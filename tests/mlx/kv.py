"""A worker's loop with a real KV cache: real directory, real I/O thread, the channel replaced by a list."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from engine.kvstore.directory import Directory, Limits
from engine.kvstore.leases import Lease
from engine.types import Accepted, CacheNote, Failed, Finished, GenerationRequest
from engine.worker.kvcache.cache import Identity, PrefixCache
from engine.worker.kvcache.guarded import GuardedCache
from engine.worker.kvcache.io_thread import IoThread
from engine.worker.kvcache.memory_tier import MemoryTier
from engine.worker.kvcache.session import Session
from engine.worker.kvcache.writeback import Writeback
from engine.worker.model import Loaded
from tests.mlx.conftest import Driver, ask, words

HEAD = words(600, 1)
"""A beginning that many prompts of these tests share."""
LIMITS = Limits(disk_bytes=1 << 30, write_bytes_a_day=1 << 34, free_bytes=0)


def request(name: str, tail: int, *, tokens: int = 16) -> GenerationRequest:
    """A greedy request that begins with `HEAD` and has an end of its own."""
    return ask(name, HEAD + words(30, tail), tokens=tokens)


class KvDriver(Driver):
    """`folder` None: memory only. `settings` are those of `Driver`. `end` writes what is left, as the end of a worker does."""

    def __init__(
        self,
        loaded: Loaded,
        folder: Path | None,
        *,
        memory_bytes: int = 1 << 28,
        limits: Limits = LIMITS,
        fingerprint: str = "f",
        **settings: Any,
    ) -> None:
        opener: Callable[[], Directory] | None = None
        if folder is not None:
            opener = partial(Directory, folder, limits, {"model": "m"})
        make_cache = partial(
            PrefixCache, identity=Identity(fingerprint, "none"), memory_bytes=memory_bytes, open_directory=opener
        )
        super().__init__(loaded, kv=Lease(memory_bytes, flush_seconds=10.0), make_cache=make_cache, **settings)

    @property
    def kv(self) -> GuardedCache:
        assert isinstance(self.loop._kv, GuardedCache)
        return self.loop._kv

    @property
    def memory(self) -> MemoryTier:
        """The tier in memory, to look at."""
        return self.kv._cache._memory

    @property
    def disk(self) -> IoThread:
        """The disk's thread, to look at and to hold up."""
        assert self.kv._cache._io is not None
        return self.kv._cache._io

    @property
    def writeback(self) -> Writeback:
        return self.kv._cache._writeback

    def session(self, request_id: str) -> Session | None:
        """An open request as the cache sees it."""
        return self.kv._cache._sessions.get(request_id)

    def run(self, requests: list[GenerationRequest], arrivals: list[int] | None = None) -> dict[str, bytes]:
        left = list(zip(arrivals or [0] * len(requests), requests, strict=True))
        first = self.ticks
        while left or any(not self.over(request.id) for request in requests):
            for entry in [entry for entry in left if entry[0] <= self.ticks - first]:
                self.post(entry[1])
                left.remove(entry)
            if self.loop.idle and self.mailbox.empty() and left:
                self.ticks += 1
                continue
            self.tick()
        for _ in range(3):  # rows that ended leave with the next plan
            if not self.loop.idle:
                self.tick()
        return {request.id: self.raw(request.id) for request in requests}

    def over(self, request_id: str) -> bool:
        return bool(self.of(request_id, Finished) or self.of(request_id, Failed))

    def of(self, request_id: str, kind: type) -> list[Any]:
        return [
            event for event in self.recorder.sent if getattr(event, "id", "") == request_id and isinstance(event, kind)
        ]

    def note(self, request_id: str) -> CacheNote:
        return self.of(request_id, Accepted)[0].cache  # type: ignore[no-any-return]

    def cached(self, request_id: str) -> int:
        return self.of(request_id, Finished)[0].usage.cached_tokens  # type: ignore[no-any-return]

    def end(self) -> None:
        self.loop._flush()
