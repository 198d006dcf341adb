"""The parent's side of the picture children. A child has one picture at a time, so one that ends tells whose fault it is."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Final

from duet.errors import InvalidRequest
from duet.supervise.limits import MEMORY_EXIT, Limits
from duet.supervise.service import ChildLost, Service, Unanswered
from engine.pictures.messages import Answer, Decode, Measure, Measured, Pixels, Question, Refused

logger = logging.getLogger(__name__)

CHILD: Final = "engine.pictures.child"
MEMORY_BYTES: Final = 1536 << 20
"""Resident memory of one child. The largest WebP takes 1,260 MB, the largest picture of another format 970."""
_FILE_BYTES: Final = 1 << 30
"""It writes no file, but the log may be one."""
MEASURE_SECONDS: Final = 10.0
DECODE_SECONDS: Final = 30.0
IDLE_SECONDS: Final = 300.0
"""A child that is not needed for this long ends."""


class PictureDecoder:
    """Asks children, of which there are at most `children`. Each has one picture at a time. Owned by one event loop."""

    def __init__(self, *, children: int) -> None:
        limits = Limits(MEMORY_BYTES, _FILE_BYTES)
        self._idle = [
            Service[Answer](CHILD, (), Answer, name=f"picture decoder {number + 1}", limits=limits, rests=False)
            for number in range(children)
        ]
        """The one that was used last is at the end: it is warm."""
        self._free = asyncio.Semaphore(children)
        self._names = itertools.count()
        self._ending: asyncio.TimerHandle | None = None
        self._ends: set[asyncio.Task[None]] = set()

    async def measure(self, data: bytes, param: str) -> tuple[int, int]:
        """Width and height by the header. Raises `InvalidRequest` naming `param`."""
        answer = await self._ask(Measure(self._name(), data), param, MEASURE_SECONDS)
        assert isinstance(answer, Measured)
        return answer.width, answer.height

    async def decode(self, data: bytes, param: str) -> Pixels:
        """Raises `InvalidRequest` naming `param`."""
        answer = await self._ask(Decode(self._name(), data), param, DECODE_SECONDS)
        assert isinstance(answer, Pixels)
        return answer

    def _name(self) -> str:
        return str(next(self._names))

    async def _ask(self, question: Question, param: str, seconds: float) -> Measured | Pixels:
        async with self._free:
            child = self._idle.pop()
            try:
                answer = await _answer(child, question, seconds)
            except ChildLost as error:
                raise InvalidRequest(_lost(error.exit_code), param=param) from error
            except Unanswered as error:
                raise InvalidRequest(f"the picture could not be read within {seconds:g} s", param=param) from error
            except asyncio.CancelledError:
                child.abandon()
                raise
            finally:
                self._idle.append(child)
                self._end_later()
        if isinstance(answer, Refused):
            raise InvalidRequest(answer.message, param=param)
        return answer

    def _end_later(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
        self._ending = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._end_idle)

    def _end_idle(self) -> None:
        task = asyncio.ensure_future(self._close_all())
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)

    async def _close_all(self) -> None:
        for _ in range(len(self._idle)):
            async with self._free:  # no question may go to a child that ends
                child = self._idle.pop(0)
                await child.close()
                self._idle.append(child)

    async def close(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
        await asyncio.gather(self._close_all(), *self._ends)


async def _answer(child: Service[Answer], question: Question, seconds: float) -> Answer:
    """A child that ends is asked once more: it may have been killed from outside."""
    try:
        return await child.call(question, timeout_seconds=seconds)
    except ChildLost as error:
        if error.exit_code == MEMORY_EXIT:
            raise
    return await child.call(question, timeout_seconds=seconds)


def _lost(exit_code: int | None) -> str:
    if exit_code == MEMORY_EXIT:
        return f"the picture takes more than {MEMORY_BYTES >> 20} MB of memory to decode: scale it down"
    return "reading the picture ended the process that read it: the file is damaged, or of a kind that cannot be read safely"
