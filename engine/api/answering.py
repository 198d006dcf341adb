"""All choices of one call as one stream of events, or as whole answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from engine.api.assembly import Answer
from engine.types import Event, Events, GenerationRequest, Work


def fan_in(work: Work, asked: Sequence[GenerationRequest]) -> Events:
    """Events of all choices as they come. An event's `id` says which choice it belongs to, and `Failed` ends its choice alone.
    Closing the generator cancels every choice."""
    # One choice is the usual case. It needs no tasks and no queue, which would cost more than all else that an event costs.
    return work.run(asked[0]) if len(asked) == 1 else _merged(work, asked)


async def _merged(work: Work, asked: Sequence[GenerationRequest]) -> Events:
    queue: asyncio.Queue[Event | Exception | None] = asyncio.Queue(maxsize=64)

    async def pump(request: GenerationRequest) -> None:
        end: Exception | None = None
        try:
            async with contextlib.aclosing(work.run(request)) as events:
                async for event in events:
                    await queue.put(event)
        except Exception as error:  # noqa: BLE001 - raised below: without it the reader would wait for ever
            end = error
        await queue.put(end)

    tasks = [asyncio.create_task(pump(request), name=request.id) for request in asked]
    try:
        for _ in tasks:
            while (event := await queue.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def collect(work: Work, asked: Sequence[GenerationRequest]) -> list[Answer]:
    """The whole answers, in the order of `asked`. The first choice that fails fails the call, and the others are cancelled."""
    answers = {request.id: Answer() for request in asked}
    async with contextlib.aclosing(fan_in(work, asked)) as events:
        async for event in events:
            answers[event.id].add(event)
    return list(answers.values())
