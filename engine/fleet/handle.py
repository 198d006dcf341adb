"""The gateway's side of one worker: requests out, events in, each to the queue of its request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import assert_never

from duet.channel import ChannelClosed
from duet.errors import Busy, PayloadTooLarge, WorkerLost
from duet.supervise.child import Child
from engine.fleet.protocol import (
    Cancel,
    ClearKv,
    EventFrame,
    FreeMemory,
    FromWorker,
    LoadFailed,
    PauseBatch,
    Ping,
    Pong,
    Ready,
)
from engine.fleet.watchdog import Watchdog
from engine.kvstore.leases import Lease
from engine.types import (
    BatchReport,
    Event,
    Events,
    Failed,
    KvReport,
    MemoryReport,
    Request,
    is_last,
)

logger = logging.getLogger(__name__)

MAX_QUEUED_EVENTS = 4096
"""Events that a slow client may leave unread before its request is cancelled: memory stays bounded."""

STOP_SECONDS = 5.0


class WorkerHandle:
    """One loaded model in a process of its own, made by `start_worker`. Its reader task owns `_queues`."""

    def __init__(
        self, child: Child[FromWorker], ready: Ready, lease: Lease | None = None, *, silence_seconds: float = 0.0
    ) -> None:
        """`silence_seconds`: see `watch`."""
        self._silence_seconds, self._watchdog = silence_seconds, Watchdog(silence_seconds)
        self._child = child
        self.lease = lease
        self.ready = ready
        self.kv = KvReport()
        """The worker's last report on its KV cache."""
        self.memory: MemoryReport | None = None
        self.batch: BatchReport | None = None
        """Its last reports; None before the first."""
        self._queues: dict[str, asyncio.Queue[Event]] = {}
        self._cancelling: set[asyncio.Task[None]] = set()
        self._telling: set[asyncio.Task[None]] = set()
        self._batch_paused = False
        self._stopping = self._lost = False
        self.started_at = time.monotonic()
        self._reader = asyncio.create_task(self._read(), name=f"{child.name}-reader")

    @property
    def alive(self) -> bool:
        return not self._reader.done()

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once its process has ended, whatever the cause. Its requests have been told by then."""
        self._reader.add_done_callback(lambda _: callback())

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def active(self) -> int:
        """Requests under way."""
        return len(self._queues)

    async def run(self, request: Request) -> Events:
        """Events up to the last. Closing the generator early cancels the request."""
        queue = await self._send(request)
        try:
            while True:
                event = await queue.get()
                yield event
                if is_last(event):
                    return
        finally:
            await self._forget(request.id)

    async def clear_kv(self) -> None:
        """Ask it to forget all KV. Raises `WorkerLost`."""
        try:
            await self._child.channel.send(ClearKv())
        except ChannelClosed as error:
            raise WorkerLost("the worker ended before it could clear its KV; send the request again") from error

    def free_memory(self) -> None:
        """Ask it to give up what can be had again. Returns at once: a worker that reads nothing must not hold up the others."""
        self._tell(FreeMemory())

    def pause_batch(self, on: bool) -> None:
        """Tell it to pause its batch work because other workers have better work, or to go on."""
        if on != self._batch_paused:
            self._batch_paused = on
            self._tell(PauseBatch(on))

    def watch(self) -> None:
        """Call this every few seconds. A worker that has requests and is silent gets a ping; after `silence_seconds` without a
        message (0: never) it is killed. Its requests fail at once, however long the system takes to end the process."""
        match self._watchdog.check(time.monotonic(), has_requests=bool(self._queues)):
            case "ask":
                self._tell(Ping())
            case "lost":
                logger.error(
                    "%s said nothing for %.0f s: killed", self._child.name, self._silence_seconds,
                    extra={"action": "worker_silent", "requests": len(self._queues)},
                )  # fmt: skip
                self._lost = True
                self._fail_all(f"the worker said nothing for {self._silence_seconds:.0f} s and was ended")
                self._child.kill()

    def _tell(self, message: PauseBatch | FreeMemory | Ping) -> None:
        async def send() -> None:
            with contextlib.suppress(ChannelClosed):  # it has ended: there is nothing left to pause or to free
                await self._child.channel.send(message)

        task = asyncio.create_task(send(), name=f"tell {self._child.name}")
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def stop(self) -> None:
        """End it in order: it has time to write KV that is only in memory."""
        self._stopping = True
        await self._child.stop(STOP_SECONDS + (self.lease.flush_seconds if self.lease is not None else 0.0))
        await asyncio.wait([self._reader])

    async def _send(self, request: Request) -> asyncio.Queue[Event]:
        if self._lost:
            raise WorkerLost(f"the worker of {request.model} is being ended; send the request again")
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._queues[request.id] = queue
        try:
            await self._child.channel.send(request)
        except ChannelClosed as error:
            self._queues.pop(request.id, None)
            raise WorkerLost(f"the worker of {request.model} ended; send the request again") from error
        except PayloadTooLarge:
            self._queues.pop(request.id, None)  # the worker never heard of it
            raise
        except BaseException:
            await self._forget(request.id)
            raise
        return queue

    async def _forget(self, request_id: str) -> None:
        """The caller has gone: cancel the request unless it has ended."""
        if self._queues.pop(request_id, None) is not None and self.alive:
            await self._cancel(request_id)

    async def _read(self) -> None:
        try:
            await self._child.channel.forward(self._deliver)
        except Exception as error:
            if not self._stopping:
                self._child.kill()
            code = await self._child.wait()
            self._fail_all("the worker process ended before the answer was complete")
            logger.log(
                logging.INFO if self._stopping else logging.ERROR,
                "%s ended",
                self._child.name,
                extra={"action": "worker_ended", "exit_code": code, "cause": repr(error)},
                # A closed channel is how a dead worker looks. Any other error is a bug of ours.
                exc_info=None if isinstance(error, ChannelClosed) else error,
            )
            await self._child.channel.close()  # last: if this fails or hangs, every request has been told

    def _fail_all(self, cause: str) -> None:
        for request_id, queue in self._queues.items():
            queue.put_nowait(Failed(request_id, WorkerLost.code, f"{cause}; send the request again"))
        self._queues.clear()

    def _deliver(self, message: FromWorker) -> None:
        self._watchdog.note_message()
        match message:
            case EventFrame():
                for event in message.events:
                    self._pass_on(event)
            case KvReport():
                self.kv = message
            case BatchReport():
                self.batch = message
            case MemoryReport():
                self.memory = message
            case Ready() | LoadFailed() | Pong():
                pass
            case _:
                assert_never(message)

    def _pass_on(self, event: Event) -> None:
        queue = self._queues.get(event.id)
        if queue is None:
            return  # cancelled a moment ago
        queue.put_nowait(event)
        if is_last(event):
            self._queues.pop(event.id)
        elif queue.qsize() > MAX_QUEUED_EVENTS:
            self._queues.pop(event.id)
            queue.put_nowait(Failed(event.id, Busy.code, "the client reads too slowly; the answer was stopped"))
            task = asyncio.create_task(self._cancel(event.id), name=f"cancel {event.id}")
            self._cancelling.add(task)
            task.add_done_callback(self._cancelling.discard)

    async def _cancel(self, request_id: str) -> None:
        try:
            await self._child.channel.send(Cancel(request_id))
        except ChannelClosed:
            logger.debug("the worker ended before the cancel", extra={"action": "cancel_late"})
