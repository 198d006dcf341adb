"""The caller's own deadline: whatever an answer waits for, a download and a load included, it waits no longer."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator

from fastapi import Request

from duet.errors import DeadlineExceeded, InvalidRequest
from engine.types import Event

MAX_DEADLINE_SECONDS = 86_400.0


def deadline_of(request: Request) -> float | None:
    """When the caller wants no answer any more, on the monotonic clock: the header `X-Duet-Deadline`, in seconds from now
    on. None without it. Raises `InvalidRequest`."""
    given = request.headers.get("x-duet-deadline")
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_DEADLINE_SECONDS:
        raise InvalidRequest(f"a number of seconds up to {MAX_DEADLINE_SECONDS:.0f}", param="X-Duet-Deadline")
    return time.monotonic() + seconds


@contextlib.asynccontextmanager
async def within(deadline: float | None) -> AsyncIterator[None]:
    """Cancels its body at the deadline and raises `DeadlineExceeded`."""
    limit = asyncio.timeout(None if deadline is None else deadline - time.monotonic())
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise DeadlineExceeded("the answer was not complete by its deadline") from error


async def punctual(events: AsyncIterator[Event], deadline: float) -> AsyncIterator[Event]:
    """The events until the deadline, then `DeadlineExceeded`. Only waiting is bounded: while the caller has an event to
    deal with, nothing is cancelled."""
    try:
        while True:
            async with within(deadline):
                event = await anext(events, None)
            if event is None:
                return
            yield event
    finally:
        await events.aclose()  # type: ignore[attr-defined]
