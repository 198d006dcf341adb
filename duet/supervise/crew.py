"""Several children of one kind that each do one thing at a time, so that one which ends tells whose fault it is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from duet.supervise.limits import MEMORY_EXIT
from duet.supervise.service import ChildLost, Service

In = TypeVar("In")


class Crew(Generic[In]):
    """Owned by one event loop. Safe to call concurrently; calls beyond the number of children wait. A child starts when it is
    needed, and ends when the crew has had nothing to do for `idle_seconds`."""

    def __init__(self, children: Sequence[Service[In]], *, idle_seconds: float) -> None:
        """`children` belong to the crew from now on."""
        self._children = tuple(children)
        self._free = list(reversed(children))
        """The one that was used last is at the end: it is warm."""
        self._places = asyncio.Semaphore(len(children))
        self._idle_seconds = idle_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._endings: set[asyncio.Task[None]] = set()

    @property
    def pids(self) -> tuple[int, ...]:
        """The living children."""
        return tuple(child.pid for child in self._children if child.pid is not None)

    async def call(self, message: Any, *, timeout_seconds: float) -> In:
        """As `Service.call`, and `message` is sent once more when a child ends before it answers: it may have been killed from
        outside. One that took too much memory was not. A caller that is cancelled ends the work, and the child with it."""
        async with self._places:
            child = self._free.pop()
            try:
                try:
                    return await child.call(message, timeout_seconds=timeout_seconds)
                except ChildLost as error:
                    if error.exit_code == MEMORY_EXIT:
                        raise
                return await child.call(message, timeout_seconds=timeout_seconds)
            except asyncio.CancelledError:
                child.abandon()
                raise
            finally:
                self._free.append(child)
                self._end_later()

    def _end_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._end_idle)

    def _end_idle(self) -> None:
        ending = asyncio.ensure_future(self._close_all())
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)

    async def _close_all(self) -> None:
        for _ in self._children:
            async with self._places:  # no call may go to a child that ends
                child = self._free.pop(0)
                await child.close()
                self._free.append(child)

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(self._close_all(), *self._endings)
