"""The one process supervisor: engine workers, speech children, and the programs of `duet up`.

A `Child` is a Python module in a process of its own, joined to us by one end of a socket pair. It sees us die by the
end of that socket, and so ends itself even after a `kill -9` of ours; we see it die the same way. A program of
`duet up` sees it by the end of its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from duet.channel import AsyncChannel, ChannelClosed
from duet.errors import Unavailable, WorkerLost

logger = logging.getLogger(__name__)

In = TypeVar("In")

HEALTHY_SECONDS = 60.0
"""A process that lived this long has earned a fresh back-off."""


def restart_delay_seconds(failures_in_a_row: int) -> float:
    """Exponential back-off: 0 at first, then 0.5, 1, 2 … at most 30."""
    return 0.0 if failures_in_a_row <= 1 else float(min(30.0, 0.5 * 2 ** (failures_in_a_row - 2)))


class Child(Generic[In]):
    """One child process and the channel to it. Owned by whoever started it, who must `stop` it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, channel: AsyncChannel[In]) -> None:
        self.name = name
        self.channel = channel
        self._process = process

    @classmethod
    async def start(
        cls,
        module: str,
        arguments: Sequence[str],
        incoming: Any,
        *,
        name: str,
        environment: Mapping[str, str] | None = None,
    ) -> Child[In]:
        """Run `python -m MODULE --fd N ARGUMENTS…`; `incoming` is the union of structs that it may send.

        Its session is its own, so that Ctrl-C at the terminal reaches us alone and we end it in order.
        """
        ours, theirs = socket.socketpair()
        try:
            # -P: a folder named like one of our packages in the working directory must not shadow it.
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", module, "--fd", str(theirs.fileno()), *arguments),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
            channel: AsyncChannel[In] = await AsyncChannel.open(ours, incoming)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        logger.info("started %s", name, extra={"action": "child_started", "child_pid": process.pid})
        return cls(name, process, channel)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    def kill(self) -> None:
        """End it and all it started, now."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def stop(self, grace_seconds: float = 5.0) -> int:
        """Close the channel (its signal to end), then SIGTERM, then SIGKILL. Returns the exit code.

        `grace_seconds` are for all before SIGKILL: a child that reads nothing keeps the channel from closing."""
        try:
            async with asyncio.timeout(grace_seconds):
                await self.channel.close()
                if self.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        self._process.terminate()
                return await self.wait()
        except TimeoutError:
            logger.warning(
                "%s did not end in %.1f s: killed", self.name, grace_seconds, extra={"action": "child_killed"}
            )
            self.kill()
            return await self.wait()
        except asyncio.CancelledError:
            self.kill()
            raise


class _Connection(Generic[In]):
    """A living child of a `Service` and the calls that wait for it. Its reader task owns `waiting`."""

    def __init__(self, child: Child[In]) -> None:
        self.child = child
        self.waiting: dict[str, asyncio.Future[In]] = {}
        self.started_at = time.monotonic()
        self._given_up = self._closing = False
        self.reader = asyncio.create_task(self._read(), name=f"{child.name}-reader")

    @property
    def alive(self) -> bool:
        return not self.reader.done() and not self._given_up

    def give_up(self) -> None:
        """The child is stuck: end it, and let no new call reach it."""
        self._given_up = True
        self.child.kill()

    async def _read(self) -> None:
        try:
            while True:
                answer = await self.child.channel.receive()
                waiter = self.waiting.pop(answer.id, None)  # type: ignore[attr-defined]
                if waiter is not None and not waiter.done():  # its caller may have gone
                    waiter.set_result(answer)
        except (ChannelClosed, msgspec.DecodeError) as error:
            if not self._closing:
                self.give_up()  # half dead is worse than dead
            code = await self.child.wait()
            logger.log(
                logging.INFO if self._closing else logging.WARNING,
                "%s ended",
                self.child.name,
                extra={"action": "child_ended", "exit_code": code, "cause": repr(error)},
            )
            for waiter in self.waiting.values():
                if not waiter.done():
                    waiter.set_exception(WorkerLost(f"{self.child.name} ended (exit code {code}) before it answered"))
            self.waiting.clear()

    async def close(self) -> None:
        self._closing = True
        await self.child.stop()
        await asyncio.wait([self.reader])


class Service(Generic[In]):
    """A request/response child that is started when first called and restarted after it died.

    Requests and answers are structs with an `id: str`. Calls run concurrently as far as the child does.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        incoming: Any,
        *,
        name: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._module, self._arguments, self._incoming = module, tuple(arguments), incoming
        self._name, self._environment = name, environment
        self._connection: _Connection[In] | None = None
        self._starting = asyncio.Lock()
        self._failures = 0

    @property
    def pid(self) -> int | None:
        """The living child's process id, None when there is none."""
        return self._connection.child.pid if self._connection and self._connection.alive else None

    async def call(self, message: Any, *, timeout_seconds: float) -> In:
        """Send `message`, return the answer with its id.

        Raises `WorkerLost` when the child ends meanwhile, and `Unavailable` after `timeout_seconds`; then the child is
        killed, since what it is doing cannot be trusted to end.
        """
        connection = await self._connected()
        waiter: asyncio.Future[In] = asyncio.get_running_loop().create_future()
        connection.waiting[message.id] = waiter
        try:
            async with asyncio.timeout(timeout_seconds):
                await connection.child.channel.send(message)
                return await waiter
        except ChannelClosed as error:
            connection.give_up()  # its reader may not have seen the end yet
            raise WorkerLost(f"{self._name} ended before it took the request") from error
        except TimeoutError as error:
            connection.give_up()
            raise Unavailable(f"{self._name} did not answer in {timeout_seconds:.0f} s") from error
        finally:
            connection.waiting.pop(message.id, None)
            if waiter.done() and not waiter.cancelled():
                waiter.exception()  # seen: the child's end may have been reported to a caller who had just left

    async def _connected(self) -> _Connection[In]:
        async with self._starting:
            if self._connection is not None:
                if self._connection.alive:
                    return self._connection
                lived = time.monotonic() - self._connection.started_at
                self._failures = 1 if lived > HEALTHY_SECONDS else self._failures + 1
                await self._connection.close()
                self._connection = None
                await asyncio.sleep(restart_delay_seconds(self._failures))
            child: Child[In] = await Child.start(
                self._module, self._arguments, self._incoming, name=self._name, environment=self._environment
            )
            self._connection = _Connection(child)
            return self._connection

    async def close(self) -> None:
        async with self._starting:
            if self._connection is not None:
                await self._connection.close()
                self._connection = None


@dataclass(frozen=True)
class Program:
    """One long-running program of `duet up`. `environment` adds to ours."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]


LIFELINE = "DUET_LIFELINE"
"""Set for a program whose standard input stays open as long as `duet up` lives."""


def end_with_parent(grace_seconds: float = 25.0) -> None:
    """Called once by a program at its start: it ends, as SIGTERM ends it, when the `duet up` that started it is gone.

    `duet up` ends its programs itself; this is for when it was killed, or its terminal closed. A program started by
    anything else is left alone.
    """
    if LIFELINE in os.environ:
        threading.Thread(target=_end_after_input, args=(grace_seconds,), name="lifeline", daemon=True).start()


def _end_after_input(grace_seconds: float) -> None:
    while os.read(0, 1024):
        continue
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_seconds)
    os._exit(1)  # nobody is left to kill what does not end


EXIT_FINAL = frozenset({2, 78})
"""Exit codes after which a restart would end the same way: usage and configuration errors."""


async def run_programs(programs: Sequence[Program], *, ready: Callable[[], Awaitable[None]] | None = None) -> int:
    """Run all programs until SIGINT or SIGTERM, restarting with back-off the ones that crash.

    `ready` runs beside them (to wait for health and greet). Returns 0 after a signal; otherwise the exit code of the
    program that cannot start (a configuration error, or a first start that fails at once, or five crashes in a row).
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


async def _keep_running(program: Program) -> int:
    """Run one program again and again; returns only when another start is of no use."""
    failures = 0
    for attempt in itertools.count(1):
        started_at = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *program.argv,
            stdin=asyncio.subprocess.PIPE,  # never written: its end is ours
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


async def _end(program: Program, process: asyncio.subprocess.Process, grace_seconds: float = 20.0) -> None:
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
