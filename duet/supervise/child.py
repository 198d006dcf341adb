"""A Python module in a process of its own, joined to us by one end of a socket pair.

Each side sees the other die because its end of the socket closes. So a child ends itself even when we get a `kill -9`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from duet.channel import AsyncChannel
from duet.supervise.limits import Limits

logger = logging.getLogger(__name__)

In = TypeVar("In")


class Child(Generic[In]):
    """One child process and the channel to it. Its owner is the caller of `start`, which must `stop` it."""

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
        limits: Limits | None = None,
    ) -> Child[In]:
        """Run `python -m MODULE --fd N ARGUMENTS…`; `incoming` is the union of structs that it may send.

        It has a session of its own, so that Ctrl-C at the terminal reaches only us, and we end it in order.
        """
        ours, theirs = socket.socketpair()
        try:
            run = (module,) if limits is None else limits.arguments(module)
            # -P: a folder named like one of our packages in the working directory must not shadow it.
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", *run, "--fd", str(theirs.fileno()), *arguments),
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
        """End it and every process it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def stop(self, grace_seconds: float = 5.0) -> int:
        """Close the channel (its signal to end), then SIGTERM, then SIGKILL. Returns the exit code.

        `grace_seconds` bound everything before SIGKILL: a child that reads nothing keeps the channel from closing."""
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
