"""Whether a structure can be compiled, found out where compiling can be ended.

llguidance compiles most structures within a millisecond and bounds most of the others. But some small ones take it minutes and
10 GB: it looks without bound for a text that several patterns have in common. A thread cannot be ended, a process can.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Final

from duet.supervise.limits import Limits
from duet.supervise.service import ChildLost, Service, Unanswered
from engine.types import Structure
from engine.worker.forms.messages import Trial, Verdict

logger = logging.getLogger(__name__)

QUICK_SECONDS: Final = 0.5
"""After this time a structure waits for the other child, so that it holds up no cheap one. What looks cheap comes first."""
COMPILE_SECONDS: Final = 3.0
COMPILE_MEMORY_BYTES: Final = 512 << 20
IDLE_SECONDS: Final = 120.0
"""Children that are not needed for this long end."""
_START_SECONDS: Final = 30.0
_LIMITS: Final = Limits(COMPILE_MEMORY_BYTES, file_bytes=1 << 20)

TOO_COSTLY: Final = (
    f"takes more than {COMPILE_SECONDS:g} s or {COMPILE_MEMORY_BYTES >> 20} MiB to compile: use fewer or simpler patterns,"
    " above all in one allOf, and smaller numbers"
)


_COSTLY: Final = re.compile(r"allOf|oneOf|[pP]attern|multipleOf|&|\{\d")


def weight(structure: Structure) -> tuple[int, int]:
    """How costly a structure looks: what can multiply its states, then its length. It decides nothing but the order."""
    return len(_COSTLY.findall(structure.text)), len(structure.text)


class _Turn:
    """One may have it. Of those that wait, the lightest is next."""

    def __init__(self) -> None:
        self._taken, self._count = False, itertools.count()
        self._waiting: list[tuple[tuple[int, int], int, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def held(self, weight: tuple[int, int]) -> AsyncIterator[None]:
        if self._taken:
            mine = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (weight, next(self._count), mine))
            await mine
        self._taken = True
        try:
            yield
        finally:
            if self._waiting:
                heapq.heappop(self._waiting)[2].set_result(None)
            else:
                self._taken = False


class _Lane:
    """One child, which has one structure at a time for at most `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._turn, self._count = seconds, _Turn(), itertools.count()
        self._child = Service[Verdict](
            "engine.worker.forms.child", (), Verdict, name="forms", limits=_LIMITS, rests=False
        )

    async def judge(self, structure: Structure, wanted: Callable[[], bool]) -> Verdict | None:
        """None: nobody wants to know any more. Raises `Unanswered` and `ChildLost`."""
        async with self._turn.held(weight(structure)):
            if not wanted():
                return None
            if self._child.pid is None:  # the start is not the structure's time
                await self._call(Structure("regex", "a", ""), _START_SECONDS)
            return await self._call(structure, self._seconds)

    async def _call(self, structure: Structure, seconds: float) -> Verdict:
        trial = Trial(str(next(self._count)), structure.kind, structure.text)
        return await self._child.call(trial, timeout_seconds=seconds)

    async def close(self) -> None:
        async with self._turn.held((0, 0)):
            await self._child.close()


class Judge:
    """Judges structures in a thread of its own. May be asked from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lanes = (_Lane(QUICK_SECONDS), _Lane(COMPILE_SECONDS))
        self._idle: asyncio.TimerHandle | None = None
        self._tasks = set[asyncio.Task[None]]()
        threading.Thread(target=self._loop.run_forever, name="judge", daemon=True).start()

    def ask(
        self, structure: Structure, wanted: Callable[[], bool], tell: Callable[[Verdict | Exception | None], None]
    ) -> None:
        """`tell` gets the verdict in the judge's thread; a fault of ours; or None when `wanted` says that nobody waits."""
        self._loop.call_soon_threadsafe(lambda: self._keep(self._judge(structure, wanted, tell)))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _judge(
        self, structure: Structure, wanted: Callable[[], bool], tell: Callable[[Verdict | Exception | None], None]
    ) -> None:
        found: Verdict | Exception | None = Verdict("", refusal=TOO_COSTLY)
        try:
            for lane in self._lanes:
                try:
                    found = await lane.judge(structure, wanted)
                    break
                except Unanswered:
                    continue
        except ChildLost as error:
            logger.warning("a form ended its compiler: %s", error, extra={"action": "structure_ended_child"})
        except Exception as error:  # noqa: BLE001 - it is told, and every question gets an answer
            found = error
        tell(found)
        if self._idle is not None:
            self._idle.cancel()
        self._idle = self._loop.call_later(IDLE_SECONDS, lambda: self._keep(self._close()))

    async def _close(self) -> None:
        for lane in self._lanes:
            await lane.close()


@cache
def shared_judge() -> Judge:
    """The judge of this process. Its children start with the first question."""
    return Judge()
