"""A child that answers requests: started when first called, and started again after it died."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from duet.channel import ChannelClosed
from duet.errors import Unavailable, WorkerLost
from duet.supervise.backoff import HEALTHY_SECONDS, restart_delay_seconds
from duet.supervise.child import Child
from duet.supervise.limits import Limits

logger = logging.getLogger(__name__)

In = TypeVar("In")


class ChildLost(WorkerLost):
    """`exit_code` is negative for a signal; None when it is not known."""

    def __init__(self, message: str, exit_code: int | None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Unanswered(Unavailable):
    """The child took too long and was ended."""


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
                if waiter is not None and not waiter.done():  # its caller may have left
                    waiter.set_result(answer)
        except (ChannelClosed, msgspec.DecodeError) as error:
            if not self._closing:
                self.give_up()  # a child that is half dead is worse than a dead one
            code = await self.child.wait()
            logger.log(
                logging.INFO if self._closing else logging.WARNING,
                "%s ended",
                self.child.name,
                extra={"action": "child_ended", "exit_code": code, "cause": repr(error)},
            )
            for waiter in self.waiting.values():
                if not waiter.done():
                    waiter.set_exception(
                        ChildLost(f"{self.child.name} ended (exit code {code}) before it answered", code)
                    )
            self.waiting.clear()

    async def close(self) -> None:
        self._closing = True
        await self.child.stop()
        await asyncio.wait([self.reader])


class Service(Generic[In]):
    """A request/response child that is started when first called and restarted after it died.

    Requests and answers are structs with an `id: str`. Calls run at the same time if the child allows it.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        incoming: Any,
        *,
        name: str,
        environment: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        rests: bool = True,
    ) -> None:
        """`rests`: wait before another start when the child keeps ending. False where its requests end it, so that one
        caller's file delays no other caller."""
        self._module, self._arguments, self._incoming = module, tuple(arguments), incoming
        self._name, self._environment, self._limits, self._rests = name, environment, limits, rests
        self._connection: _Connection[In] | None = None
        self._starting = asyncio.Lock()
        self._failures = 0

    @property
    def pid(self) -> int | None:
        """The process id of the living child; None when there is none."""
        return self._connection.child.pid if self._connection and self._connection.alive else None

    async def call(self, message: Any, *, timeout_seconds: float) -> In:
        """Send `message`, return the answer with its id.

        Raises `ChildLost` when the child ends before it answers, and `Unanswered` after `timeout_seconds`. The child is
        killed then, since its work may never end.
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
            raise ChildLost(f"{self._name} ended before it took the request", None) from error
        except TimeoutError as error:
            connection.give_up()
            raise Unanswered(f"{self._name} did not answer in {timeout_seconds:.0f} s") from error
        finally:
            connection.waiting.pop(message.id, None)
            if waiter.done() and not waiter.cancelled():
                waiter.exception()  # mark as seen: the child's end may be set on a waiter whose caller has just left

    async def _connected(self) -> _Connection[In]:
        async with self._starting:
            if self._connection is not None:
                if self._connection.alive:
                    return self._connection
                lived = time.monotonic() - self._connection.started_at
                self._failures = 1 if lived > HEALTHY_SECONDS else self._failures + 1
                await self._connection.close()
                self._connection = None
                if self._rests:
                    await asyncio.sleep(restart_delay_seconds(self._failures))
            child: Child[In] = await Child.start(
                self._module,
                self._arguments,
                self._incoming,
                name=self._name,
                environment=self._environment,
                limits=self._limits,
            )
            self._connection = _Connection(child)
            return self._connection

    def abandon(self) -> None:
        """End the child with what it is doing: nobody waits for it. The next call starts another."""
        if self._connection is not None and self._connection.alive:
            self._connection.give_up()

    async def close(self) -> None:
        async with self._starting:
            if self._connection is not None:
                await self._connection.close()
                self._connection = None
