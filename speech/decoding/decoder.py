"""Decodes files in child processes, because a file may end, stall or bloat whoever reads it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from duet.errors import DiskFull
from duet.supervise.crew import Crew
from duet.supervise.limits import MEMORY_EXIT, Limits
from duet.supervise.service import ChildLost, Service, Unanswered
from speech.decoding.child.messages import Channels, Decode, DecodeFailed, Probe, Probed
from speech.decoding.child.messages import Decoded as Answer
from speech.decoding.errors import InvalidAudio
from speech.decoding.pcm import BYTES_PER_SECOND

CHILD = "speech.decoding.child.decode"
AT_ONCE = 3
"""Files that are decoded at the same time; further ones wait."""
MEMORY_BYTES = 1 << 30
"""Resident memory of one child. An hour of 16 channels takes 300 MB, other files a tenth of that."""
PATIENCE_SECONDS, PATIENCE_SECONDS_A_MEGABYTE = 60.0, 2.0
"""How long a file may take. One of an hour takes 2 to 7 s alone on one core."""
IDLE_SECONDS = 300.0
"""Children that have had nothing to do for this long end."""
_LOOK_SECONDS = 0.5
_Answer = Answer | Probed | DecodeFailed


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


class Decoder:
    """Safe to call concurrently. Children are started when they are needed; one in use is enough for short clips."""

    def __init__(self, *, max_seconds: float) -> None:
        """`max_seconds`: longer audio is refused."""
        self._max_seconds = max_seconds
        limits = Limits(MEMORY_BYTES, round(max_seconds + 60) * BYTES_PER_SECOND)
        self._children = Crew(
            [
                Service[_Answer](CHILD, (), _Answer, name=f"decoder {number + 1}", limits=limits, rests=False)
                for number in range(AT_ONCE)
            ],
            idle_seconds=IDLE_SECONDS,
        )

    @property
    def pids(self) -> tuple[int, ...]:
        """The living children."""
        return self._children.pids

    async def probe(self, path: Path) -> float | None:
        """The duration that the header declares, in seconds; None when it does not say. Raises `InvalidAudio` for what is no
        audio, and for audio that is too long."""
        answer = await self._asked(Probe(secrets.token_hex(8), os.fsencode(path)), path)
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
        answering = asyncio.ensure_future(self._asked(asked, path))
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
        await self._children.close()

    async def _asked(self, question: Decode | Probe, path: Path) -> Answer | Probed:
        size = await asyncio.to_thread(lambda: path.stat().st_size)
        seconds = PATIENCE_SECONDS + PATIENCE_SECONDS_A_MEGABYTE * size / 1e6
        try:
            answer = await self._children.call(question, timeout_seconds=seconds)
        except ChildLost as error:
            raise InvalidAudio(_lost(error.exit_code)) from error
        except Unanswered as error:
            raise InvalidAudio(f"the file could not be decoded in {seconds:.0f} s: it may be damaged") from error
        if isinstance(answer, DecodeFailed):
            raise _failed(answer)
        return answer


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
