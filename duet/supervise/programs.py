"""The programs of `duet up`: run until a signal, started again when they crash, and never ended because of each other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from duet.supervise.backoff import EXIT_FINAL, Endings
from duet.supervise.board import Board, ProgramState, resting
from duet.supervise.lifeline import LIFELINE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Supervised:
    """A program to keep running. `environment` is added to ours."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass
class _Kept:
    """A program with its runs so far. `code` is the last one's exit code; `idle`: it does not run now."""

    program: Supervised
    endings: Endings = field(default_factory=Endings)
    code: int = 0
    idle: bool = False

    @property
    def cannot_run(self) -> bool:
        return self.idle and self.endings.resting and self.endings.never_ran


async def run_programs(
    programs: Sequence[Supervised], *, board: Board | None = None, ready: Callable[[], Awaitable[None]] | None = None
) -> int:
    """Run all programs until SIGINT or SIGTERM. One that crashes is started again after a growing delay, and rests after
    some crashes in a row; the others go on. `board` shows how they are.

    `ready` runs beside them (to wait for health and greet). Returns 0 after a signal. When no program can run at all,
    because none has lasted since its first start, it returns the exit code of one of them.

    SIGHUP keeps what it does already. By default it ends us when the terminal closes, and the programs see that by their
    lifeline. Under `nohup` it is ignored, here and in the programs: all go on.
    """
    board = board or Board()
    stopping, kept = asyncio.Event(), [_Kept(program) for program in programs]
    nothing_runs = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stopping.set)

    def rested() -> None:
        if all(one.cannot_run for one in kept):
            nothing_runs.set()

    tasks = [asyncio.create_task(_keep_running(one, board, rested), name=one.program.name) for one in kept]
    greeting = [asyncio.ensure_future(ready())] if ready else []
    ends = [asyncio.create_task(event.wait()) for event in (stopping, nothing_runs)]
    try:
        await asyncio.wait({*ends, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        return 0 if stopping.is_set() else next((one.code for one in kept if one.code), 1)
    finally:
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(name)
        for task in (*tasks, *greeting, *ends):
            task.cancel()
        outcomes = await asyncio.gather(*tasks, *greeting, *ends, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                logger.error("while stopping", exc_info=outcome)


async def _keep_running(kept: _Kept, board: Board, rested: Callable[[], None]) -> None:
    """Run one program again and again. `rested` is called when it rests."""
    name = kept.program.name
    while True:
        board.set(name, ProgramState("running", ended=kept.endings.runs))
        started_at, kept.idle = time.monotonic(), False
        kept.code, said = await _run_once(kept.program)
        kept.idle = True
        lived = time.monotonic() - started_at
        pause = kept.endings.add(kept.code, lived)
        logger.warning(
            "%s ended",
            name,
            extra={"action": "program_ended", "exit_code": kept.code, "lived_seconds": round(lived, 1)},
        )
        why = f"{said}, {kept.endings.failures} times in a row" if kept.endings.failures > 1 else said
        state = ProgramState(
            "resting" if kept.endings.resting else "starting", why, time.time() + pause, kept.endings.runs
        )
        board.set(name, state)
        if kept.endings.resting:
            logger.error(
                "%s",
                resting(name, state),
                extra={"action": "program_rests", "program_name": name, "seconds": round(pause)},
            )
            rested()
        await asyncio.sleep(pause)


async def _run_once(program: Supervised) -> tuple[int, str]:
    """The exit code of one run, and a sentence about it."""
    try:
        process = await asyncio.create_subprocess_exec(
            *program.argv,
            stdin=asyncio.subprocess.PIPE,  # never written to: it closes when we end (`lifeline`)
            env={**os.environ, **program.environment, LIFELINE: "1"},
            start_new_session=True,
        )
    except OSError as error:  # no process can be made now, or our Python has gone, as during an upgrade
        return 127, f"it could not be started ({error.strerror})"
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        await _end(program, process)
        raise
    return code, _described(code)


def _described(code: int) -> str:
    if code in EXIT_FINAL:
        return f"it ended with exit code {code}, which is a configuration error"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"it was ended by {signal.Signals(-code).name}"
    return f"it ended with exit code {code}"


async def _end(program: Supervised, process: asyncio.subprocess.Process, grace_seconds: float = 20.0) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(grace_seconds):
            await process.wait()
    except TimeoutError:
        logger.warning(
            "%s did not end in %.0f s: killed", program.name, grace_seconds, extra={"action": "program_killed"}
        )
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
