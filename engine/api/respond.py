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
from engine.types import Accepted, Event, Events, Failed, GenerationRequest, Work, raise_failure

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
    beginning = _Beginning(fan_in(work, asked), {one.id for one in asked})
    await beginning.awaited()
    streamed = _Streamed(dialect, {one.id: i for i, one in enumerate(asked)}, beginning)
    found = _with(headers, streamed.accepted())
    return EventStream(streamed.write, waiting=waiting, error=dialect.error, close=streamed.close, headers=found)


def _with(headers: Mapping[str, str], *choices: Accepted | None) -> dict[str, str]:
    return {**headers, **accepted_headers([one for one in choices if one is not None], headers)}


class _Streamed:
    """The stream of one call."""

    def __init__(self, dialect: Dialect, indexes: Mapping[str, int], beginning: _Beginning) -> None:
        self._dialect, self._indexes, self._beginning = dialect, indexes, beginning

    async def write(self, put: Put) -> None:
        """All frames from the first to the last. A failure of one choice ends the stream."""
        dialect = self._dialect
        if frames := dialect.first_frames():
            await put(frames)
        try:
            async for event in self._beginning.all_events():
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
        return next((event for event in self._beginning.events if isinstance(event, Accepted)), None)

    async def close(self) -> None:
        """Cancels every choice that has not ended."""
        await self._beginning.close()


class _Beginning:
    """The events of a call until each of its choices has said its first word. The words decide the HTTP status: a prompt that is
    refused fails the call, whatever the others have begun to say."""

    def __init__(self, events: Events, ids: set[str]) -> None:
        self._rest, self._silent = events, ids
        self.events: list[Event] = []
        self._enough = False
        self._reading = asyncio.ensure_future(self._read())

    async def awaited(self) -> None:
        """Until all have begun, but no longer than `PROMISE_AFTER_SECONDS`: a model may have to be loaded. Raises the error of a
        choice that failed."""
        try:
            await asyncio.wait([self._reading], timeout=PROMISE_AFTER_SECONDS)
            self._enough = True
            if self._reading.done():
                self._reading.result()
            for event in self.events:
                raise_failure(event)
        except BaseException:
            await self.close()
            raise

    async def all_events(self) -> Events:
        """From the first on."""
        await asyncio.wait([self._reading])
        for event in self.events:
            yield event
        self._reading.result()
        async for event in self._rest:
            yield event

    async def close(self) -> None:
        """Cancels every choice that has not ended."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._rest.aclose()

    async def _read(self) -> None:
        while self._silent and not self._enough:
            if (event := await anext(self._rest, None)) is None:
                return
            self.events.append(event)
            self._silent.discard(event.id)
            if isinstance(event, Failed):
                return
