"""The programs of `duet up`: run until a signal, and started again when they crash."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from duet.supervise.backoff import HEALTHY_SECONDS, restart_delay_seconds
from duet.supervise.lifeline import LIFELINE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Supervised:
    """A program to keep running. `environment` is added to ours."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]


EXIT_FINAL = frozenset({2, 78})
"""Exit codes after which a restart would fail the same way: usage and configuration errors."""


async def run_programs(programs: Sequence[Supervised], *, ready: Callable[[], Awaitable[None]] | None = None) -> int:
    """Run all programs until SIGINT or SIGTERM. One that crashes is started again after a growing delay.

    `ready` runs beside them (to wait for health and greet). Returns 0 after a signal. Otherwise it returns the exit code of
    a program that cannot start: a configuration error, a first start that fails at once, or five crashes in a row.

    SIGHUP keeps what it does already. By default it ends us when the terminal closes, and the programs see that by their
    lifeline. Under `nohup` it is ignored, here and in the programs: all go on.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stopping.set)
    tasks = [asyncio.create_task(_keep_running(program), name=program.name) for program in programs]
    greeting = [asyncio.ensure_future(ready())] if ready else []
    stopped = asyncio.create_task(stopping.wait())
    try:
        waiting = {stopped, *tasks}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        ended = [task.result() for task in tasks if task.done()]
        return 0 if stopping.is_set() or not ended else ended[0]
    finally:
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(name)
        for task in (*tasks, *greeting, stopped):
            task.cancel()
        outcomes = await asyncio.gather(*tasks, *greeting, stopped, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                logger.error("while stopping", exc_info=outcome)


async def _keep_running(program: Supervised) -> int:
    """Run one program again and again. Returns only when another start would fail too."""
    failures = 0
    for attempt in itertools.count(1):
        started_at = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *program.argv,
            stdin=asyncio.subprocess.PIPE,  # never written to: it closes when we end (`lifeline`)
            env={**os.environ, **program.environment, LIFELINE: "1"},
            start_new_session=True,
        )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            await _end(program, process)
            raise
        lived = time.monotonic() - started_at
        failures = 1 if lived > HEALTHY_SECONDS else failures + 1
        logger.warning(
            "%s ended",
            program.name,
            extra={"action": "program_ended", "exit_code": code, "lived_seconds": round(lived, 1)},
        )
        if code in EXIT_FINAL or failures >= 5 or (attempt == 1 and code == 1 and lived < 10):
            return code or 1
        await asyncio.sleep(restart_delay_seconds(failures))
    raise AssertionError("unreachable")


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
