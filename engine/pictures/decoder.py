"""The parent's side of the picture children. A child has one picture at a time, so one that ends tells whose fault it is."""

from __future__ import annotations

import itertools
from typing import Final

from duet.errors import InvalidRequest
from duet.supervise.crew import Crew
from duet.supervise.limits import MEMORY_EXIT, Limits
from duet.supervise.service import ChildLost, Service, Unanswered
from engine.pictures.messages import Answer, Decode, Measure, Measured, Pixels, Question, Refused

CHILD: Final = "engine.pictures.child"
MEMORY_BYTES: Final = 1536 << 20
"""Resident memory of one child. The largest WebP takes 1,260 MB, the largest picture of another format 970."""
_FILE_BYTES: Final = 1 << 30
"""It writes no file, but the log may be one."""
MEASURE_SECONDS: Final = 10.0
DECODE_SECONDS: Final = 30.0
IDLE_SECONDS: Final = 300.0
"""Children that are not needed for this long end."""


class PictureDecoder:
    """Asks children, of which there are at most `children`. Each has one picture at a time. Owned by one event loop."""

    def __init__(self, *, children: int) -> None:
        limits = Limits(MEMORY_BYTES, _FILE_BYTES)
        self._children = Crew(
            [
                Service[Answer](CHILD, (), Answer, name=f"picture decoder {number + 1}", limits=limits, rests=False)
                for number in range(children)
            ],
            idle_seconds=IDLE_SECONDS,
        )
        self._names = itertools.count()

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
        try:
            answer = await self._children.call(question, timeout_seconds=seconds)
        except ChildLost as error:
            raise InvalidRequest(_lost(error.exit_code), param=param) from error
        except Unanswered as error:
            raise InvalidRequest(f"the picture could not be read within {seconds:g} s", param=param) from error
        if isinstance(answer, Refused):
            raise InvalidRequest(answer.message, param=param)
        return answer

    async def close(self) -> None:
        await self._children.close()


def _lost(exit_code: int | None) -> str:
    if exit_code == MEMORY_EXIT:
        return f"the picture takes more than {MEMORY_BYTES >> 20} MB of memory to decode: scale it down"
    return "reading the picture ended the process that read it: the file is damaged, or of a kind that cannot be read safely"
