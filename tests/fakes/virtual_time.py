"""An event loop whose time passes only while every task waits: hours of sweeps and timeouts take milliseconds, always the
same."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar
from unittest import mock

T = TypeVar("T")


class Inline(ThreadPoolExecutor):
    """Runs work at once, in the same thread: virtual time would run on and on while a real thread takes real time."""

    def submit(self, work: Callable[..., T], /, *given: Any, **named: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(work(*given, **named))
        except Exception as error:  # noqa: BLE001 - the caller that waits for the result gets it, as from a thread
            future.set_exception(error)
        return future


class _Selector(selectors.DefaultSelector):
    """Moves the clock forward instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "every task waits, and nothing will wake one"
            self.now += max(0.0, timeout)
        return ready


class VirtualTime:
    """`time.monotonic` is this clock while `run` runs."""

    def __init__(self) -> None:
        self._selector = _Selector()
        self.loop = asyncio.SelectorEventLoop(self._selector)
        self.loop.set_default_executor(Inline())

    @property
    def now(self) -> float:
        return self._selector.now

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`. When this returns, all other tasks have run as far as they can within one millisecond of
        virtual time."""

        async def settled() -> T:
            try:
                return await work
            finally:
                await asyncio.sleep(0.001)

        with mock.patch("time.monotonic", lambda: self.now):
            return self.loop.run_until_complete(settled())

    def close(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
