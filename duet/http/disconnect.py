"""A client that leaves before its answer: its work ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.types import Receive

from duet.errors import Unavailable

T = TypeVar("T")

CLIENT_CLOSED = 499
"""nginx's status for a client that left before its answer: seen in the log only."""


class ClientGone(Exception):
    """The client closed the connection: there is nobody to answer."""


def stopped() -> Unavailable:
    return Unavailable("this service is stopping; send the request again when it is back", retry_after_seconds=5)


async def disconnected(receive: Receive) -> None:
    """Returns when the client has left. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Cancels it and raises `ClientGone` when the client leaves first, `Unavailable` when the
    server stops."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(disconnected(request.receive), name="disconnect")
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    except asyncio.CancelledError as error:
        raise stopped() from error  # only the stopping server cancels a request
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def install_disconnect(app: FastAPI) -> None:
    """Give `app` a handler that ends the request of a client that has gone."""
    app.add_exception_handler(ClientGone, _on_client_gone)


async def _on_client_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)
