"""The live requests of a worker: each has one record, from its arrival to its end."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from duet.channel import BlockingChannel
from duet.errors import DuetError, Internal, PayloadTooLarge, WorkerLost
from engine.fleet.protocol import EventFrame, ToWorker
from engine.types import Accepted, CacheNote, Event, Failed, Request, is_last
from engine.worker.answers.output import Output

logger = logging.getLogger(__name__)


class Place(Protocol):
    """Where a request is at the moment: it waits for its form, it is a job, or it is a sequence."""

    def forget(self, request_id: str) -> None:
        """The request has ended. Harmless for requests that are not here."""
        ...


@dataclass
class Live:
    """One request that has not ended. `deadline` is infinite for a request without one.

    A request that has become a sequence also has its `output` and, if its KV can be looked up, `look_up`, which asks the KV cache
    for tokens and says whether they are in memory already. `unaccepted` is what the gateway is told when
    the request is accepted, until it is told.
    """

    request: Request
    deadline: float
    place: Place | None = None
    output: Output | None = None
    look_up: Callable[[tuple[int, ...]], bool] | None = None
    unaccepted: Accepted | None = None


class LiveRequests:
    """Owns the records and what is said about them. Owned by the loop.

    Every request ends in exactly one last event, unless it is cancelled (`end`). Events are collected during a tick, and `emit`
    sends them as one frame.
    """

    def __init__(self, channel: BlockingChannel[ToWorker]) -> None:
        self._channel = channel
        self._live: dict[str, Live] = {}
        self._events: list[Event] = []

    def __len__(self) -> int:
        return len(self._live)

    def get(self, request_id: str) -> Live | None:
        """None: it has ended."""
        return self._live.get(request_id)

    @property
    def next_deadline(self) -> float:
        return min((live.deadline for live in self._live.values()), default=math.inf)

    def late(self, now: float) -> list[str]:
        """Requests that are past their deadline."""
        return [request_id for request_id, live in self._live.items() if now >= live.deadline]

    def unaccepted(self) -> set[str]:
        """Requests that are sequences, and whose prompts are still being looked up."""
        return {name for name, live in self._live.items() if live.unaccepted is not None}

    def begin(self, request: Request) -> Live:
        live = Live(request, math.inf if request.deadline is None else request.deadline)
        self._live[request.id] = live
        return live

    def accept(self, request_id: str, note: CacheNote) -> None:
        """Tell the gateway, once. An unknown id has ended."""
        live = self._live.get(request_id)
        if live is not None and live.unaccepted is not None:
            self._events.append(msgspec.structs.replace(live.unaccepted, cache=note))
            live.unaccepted = None

    def answer(self, events: Iterable[Event]) -> None:
        """Say these about live requests. A last event ends its request."""
        for event in events:
            self._events.append(event)
            if is_last(event):
                self.end(event.id)

    def fail(self, request_id: str, error: Exception) -> None:
        """End one request with a `DuetError`, or with a fault of ours that only the log tells in full."""
        if not isinstance(error, DuetError):
            logger.error("a request failed", exc_info=error, extra={"action": "request_failed"})
            error = Internal(f"the model failed on this request: {type(error).__name__}")
        self.answer([Failed.of(request_id, error)])

    def fail_all(self, message: str) -> None:
        """The worker ends, and nobody forgets anything any more."""
        self._events += [Failed(request_id, WorkerLost.code, message) for request_id in self._live]
        self.emit()

    def end(self, request_id: str) -> None:
        """Forget a request in whatever state it is. An unknown id has ended already."""
        live = self._live.pop(request_id, None)
        if live is not None and live.place is not None:
            live.place.forget(request_id)

    def emit(self) -> None:
        """Send what was said since the last time."""
        events, self._events = self._events, []
        try:
            if events:
                self._channel.send(EventFrame(events))
        except PayloadTooLarge:
            self._emit_singly(events)

    def _emit_singly(self, events: list[Event]) -> None:
        """Together the events are too large for one message. A request fails if one event of it alone is; the others go on."""
        ended: set[str] = set()
        for event in events:
            if event.id in ended:
                continue
            try:
                self._channel.send(EventFrame([event]))
            except PayloadTooLarge as error:
                ended.add(event.id)
                self.end(event.id)
                self._channel.send(EventFrame([Failed.of(event.id, error)]))
