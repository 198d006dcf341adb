"""One call of any text dialect becomes one HTTP response: whole or streamed, and cancelled when the client leaves.

A dialect is a row of pure functions: it turns answers and events into bytes, and knows nothing of waiting, closing or failing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from fastapi import Request, Response

from duet.errors import DuetError, Internal
from duet.http.disconnect import unless_gone
from engine.api.answering import collect, fan_in
from engine.api.assembly import Answer
from engine.api.shared.headers import accepted_headers
from engine.api.shared.sse import EventStream, Put
from engine.types import Accepted, Event, Events, GenerationRequest, Work, raise_failure

logger = logging.getLogger(__name__)

PROMISE_AFTER_SECONDS = 3.0
"""A stream waits this long for the worker's first word. Then its status becomes 200, and comments keep it alive."""


class Dialect(Protocol):
    """How one call is answered. Frames are complete server-sent events, any number of them in one piece; b"" for none."""

    def whole(self, answers: Sequence[Answer]) -> bytes:
        """The body of an answer that is not streamed, from one `Answer` a choice."""
        ...

    def first_frames(self) -> bytes:
        """What a stream begins with."""
        ...

    def frames(self, index: int, event: Event) -> bytes:
        """What one event of choice `index` shows."""
        ...

    def last_frames(self) -> bytes:
        """What a stream ends with once all choices are complete."""
        ...

    def error(self, error: DuetError) -> bytes:
        """The frame of an error after the stream has begun. Nothing follows it."""
        ...


async def respond(
    dialect: Dialect,
    asked: Sequence[GenerationRequest],
    *,
    request: Request,
    work: Work,
    waiting: Callable[[], str],
    stream: bool,
    headers: Mapping[str, str],
) -> Response:
    """The response to one call. `asked` has one request a choice; `waiting` says what a silent stream waits for.

    Raises the `DuetError` of a call that fails before it is clear that there will be an answer.
    """
    if not stream:
        answers = await unless_gone(request, collect(work, asked))
        body = dialect.whole(answers)
        return Response(body, media_type="application/json", headers=_with(headers, *(one.accepted for one in answers)))
    events = fan_in(work, asked)
    first = await _first_event(events)
    streamed = _Streamed(dialect, {one.id: i for i, one in enumerate(asked)}, first, events)
    found = _with(headers, streamed.accepted())
    return EventStream(streamed.write, waiting=waiting, error=dialect.error, close=streamed.close, headers=found)


def _with(headers: Mapping[str, str], *choices: Accepted | None) -> dict[str, str]:
    return {**headers, **accepted_headers([one for one in choices if one is not None], headers)}


class _Streamed:
    """The stream of one call. `first` is the task of its first event, `events` are the others."""

    def __init__(
        self, dialect: Dialect, indexes: Mapping[str, int], first: asyncio.Task[Event], events: Events
    ) -> None:
        self._dialect, self._indexes, self._first, self._events = dialect, indexes, first, events

    async def write(self, put: Put) -> None:
        """All frames from the first to the last. A failure of one choice ends the stream."""
        dialect = self._dialect
        if frames := dialect.first_frames():
            await put(frames)
        try:
            if frames := self._shown(await self._first):
                await put(frames)
            async for event in self._events:
                if frames := self._shown(event):
                    await put(frames)
        except DuetError as error:
            await put(dialect.error(error))
        except Exception:
            logger.exception("a stream failed", extra={"action": "stream_failed"})
            await put(dialect.error(Internal("an unexpected error ended the answer; the engine's log says more")))
        else:
            await put(dialect.last_frames())

    def _shown(self, event: Event) -> bytes:
        raise_failure(event)
        return self._dialect.frames(self._indexes[event.id], event)

    def accepted(self) -> Accepted | None:
        """None while the first event is awaited: the headers go out before it."""
        event = self._first.result() if self._first.done() else None
        return event if isinstance(event, Accepted) else None

    async def close(self) -> None:
        """Cancels every choice that has not ended."""
        await _closed(self._first, self._events)


async def _first_event(events: Events) -> asyncio.Task[Event]:
    """The worker's first word, which decides the HTTP status. The task still runs when that takes too long, because a model is
    loaded for instance."""
    first = asyncio.ensure_future(anext(events))
    try:
        await asyncio.wait([first], timeout=PROMISE_AFTER_SECONDS)
        if first.done():
            raise_failure(first.result())
    except BaseException:
        await _closed(first, events)
        raise
    return first


async def _closed(first: asyncio.Task[Event], events: Events) -> None:
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await events.aclose()
