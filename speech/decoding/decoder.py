"""Decodes files in child processes, because a file may end, stall or bloat whoever reads it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duet.errors import DiskFull
from duet.supervise.limits import MEMORY_EXIT, Limits
from duet.supervise.service import ChildLost, Service, Unanswered
from speech.decoding.child.messages import Channels, Decode, DecodeFailed, Probe, Probed
from speech.decoding.child.messages import Decoded as Answer
from speech.decoding.errors import InvalidAudio
from speech.decoding.pcm import BYTES_PER_SECOND

logger = logging.getLogger(__name__)

CHILD = "speech.decoding.child.decode"
AT_ONCE = 3
"""Files that are decoded at the same time; further ones wait."""
MEMORY_BYTES = 1 << 30
"""Resident memory of one child. An hour of 16 channels takes 300 MB, other files a tenth of that."""
PATIENCE_SECONDS, PATIENCE_SECONDS_A_MEGABYTE = 60.0, 2.0
"""How long a file may take. One of an hour takes 2 to 7 s alone on one core."""
IDLE_SECONDS = 300.0
"""A child that has had nothing to do for this long ends."""
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Decoded:
    """`seconds` run from the container's zero to the last sample: a late start and gaps are silence.

    `files` has one file of PCM, or one a channel. `truncated` says why the file is not whole. `notes` say what was chosen,
    left out or filled in.
    """

    seconds: float
    files: tuple[Path, ...]
    truncated: str | None
    notes: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        return (*([self.truncated] if self.truncated else ()), *self.notes)


class _Slot:
    """One child, and the timer that ends it when it is idle."""

    def __init__(self, number: int, limits: Limits) -> None:
        self.service: Service[Answer | Probed | DecodeFailed] = Service(
            CHILD,
            (),
            Answer | Probed | DecodeFailed,
            name=f"decoder {number}",
            limits=limits,
            rests=False,
        )
        self.idle: asyncio.TimerHandle | None = None


class Decoder:
    """Safe to call concurrently. Children are started when they are needed; one in use is enough for short clips."""

    def __init__(self, *, max_seconds: float) -> None:
        """`max_seconds`: longer audio is refused."""
        self._max_seconds = max_seconds
        limits = Limits(MEMORY_BYTES, round(max_seconds + 60) * BYTES_PER_SECOND)
        self._slots = [_Slot(number + 1, limits) for number in range(AT_ONCE)]
        self._free = self._slots[::-1]
        self._places = asyncio.Semaphore(AT_ONCE)
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def pids(self) -> tuple[int, ...]:
        """The living children."""
        return tuple(slot.service.pid for slot in self._slots if slot.service.pid is not None)

    async def probe(self, path: Path) -> float | None:
        """The duration that the header declares, in seconds; None when it does not say. Raises `InvalidAudio` for what is no
        audio, and for audio that is too long."""
        async with self._slot() as slot:
            answer = await self._answer(slot, Probe(secrets.token_hex(8), os.fsencode(path)), path)
        assert isinstance(answer, Probed)
        if answer.seconds is not None and answer.seconds > self._max_seconds:
            raise InvalidAudio(f"the audio is {answer.seconds:.0f} s long; at most {self._max_seconds:.0f} s are taken")
        return answer.seconds

    async def decode(
        self,
        path: Path,
        target: Path,
        *,
        strict: bool = False,
        channels: Channels = "mix",
        on_progress: Callable[[float], None] | None = None,
    ) -> Decoded:
        """Write the audio of `path` to `target` (`speech.decoding.pcm`), or with "each" one file a channel beside it.

        `strict`: a truncated file is refused. `on_progress` gets the seconds decoded so far. What it raises, and the end of
        this call, ends the work. Raises `InvalidAudio` and `DiskFull`.
        """
        asked = Decode(secrets.token_hex(8), os.fsencode(path), os.fsencode(target), self._max_seconds, channels)
        async with self._slot() as slot:
            answering = asyncio.ensure_future(self._answer(slot, asked, path))
            try:
                while on_progress is not None and not answering.done():
                    await asyncio.wait([answering], timeout=_LOOK_SECONDS)
                    with contextlib.suppress(FileNotFoundError):
                        on_progress(target.stat().st_size / BYTES_PER_SECOND)
                answer = await answering
            finally:
                answering.cancel()
        assert isinstance(answer, Answer)
        if strict and answer.truncated:
            raise InvalidAudio(f"{answer.truncated}, and strict=true refuses that")
        files = tuple(Path(os.fsdecode(file)) for file in answer.files)
        return Decoded(answer.seconds, files, answer.truncated, answer.notes)

    async def close(self) -> None:
        for slot in self._slots:
            if slot.idle is not None:
                slot.idle.cancel()
        await asyncio.gather(*(slot.service.close() for slot in self._slots), *self._closing)

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[_Slot]:
        """The slot that was used last: its child is the warmest."""
        async with self._places:
            slot = self._free.pop()
            if slot.idle is not None:
                slot.idle.cancel()
            try:
                yield slot
            finally:
                self._free.append(slot)
                slot.idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._end_idle, slot)

    def _end_idle(self, slot: _Slot) -> None:
        task = asyncio.create_task(slot.service.close(), name="decoder-idle")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _answer(self, slot: _Slot, asked: Decode | Probe, path: Path) -> Answer | Probed:
        """A child that ends is asked for once more: it may have been killed from outside."""
        for last in (False, True):
            try:
                answer = await self._called(slot, asked, path)
            except ChildLost as error:
                if last or error.exit_code == MEMORY_EXIT:
                    raise InvalidAudio(_lost(error.exit_code)) from error
                continue
            if isinstance(answer, DecodeFailed):
                raise _failed(answer)
            return answer
        raise AssertionError("unreachable")

    async def _called(self, slot: _Slot, asked: Any, path: Path) -> Answer | Probed | DecodeFailed:
        size = await asyncio.to_thread(lambda: path.stat().st_size)
        seconds = PATIENCE_SECONDS + PATIENCE_SECONDS_A_MEGABYTE * size / 1e6
        try:
            return await slot.service.call(asked, timeout_seconds=seconds)
        except Unanswered as error:
            raise InvalidAudio(f"the file could not be decoded in {seconds:.0f} s: it may be damaged") from error
        except asyncio.CancelledError:
            slot.service.abandon()
            raise


def _lost(exit_code: int | None) -> str:
    if exit_code == MEMORY_EXIT:
        return f"the file needs more than {MEMORY_BYTES >> 20} MB of memory to decode"
    how = "it ended"
    if exit_code is not None and exit_code < 0:
        with contextlib.suppress(ValueError):
            how = f"it ended by {signal.Signals(-exit_code).name}"
    return f"the decoder did not survive this file ({how}): it is damaged, or of a kind that cannot be decoded safely"


def _failed(answer: DecodeFailed) -> InvalidAudio | DiskFull:
    match answer.fault:
        case "file":
            return InvalidAudio(answer.message)
        case "memory":
            return InvalidAudio(_lost(MEMORY_EXIT))
        case "disk":
            return DiskFull(
                f"the decoded audio cannot be kept in $DUET_HOME/tmp: {answer.message}; free space on that disk and send "
                "the file again",
                param="file",
            )
