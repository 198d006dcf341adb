"""The HTTP edge of both services, in this order: request id and one log line a request, Host allow-list, a browser's question
(CORS), API key, body bound, compressed bodies.

Written as plain ASGI, since Starlette's BaseHTTPMiddleware hides a client's disconnect from streaming routes.
"""

from __future__ import annotations

import errno
import logging
import re
import secrets
import time
from collections.abc import Mapping, Sequence

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from duet import logs
from duet.errors import DiskFull, DuetError, Internal, InvalidRequest, PayloadTooLarge, UnsupportedEncoding
from duet.http.access import LOCAL_HOSTS, OPEN_PATHS, Access
from duet.http.cors import Origins
from duet.http.disconnect import install_disconnect
from duet.http.encodings import encodings_of, opened, plain
from duet.http.errors import ErrorBody, body_for, error_response, install_errors, plain_error

logger = logging.getLogger(__name__)

TENANT = "primary"
"""Requests of different tenants share nothing that was derived from their content."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SLASHES = re.compile("/{2,}")


def install_edge(
    app: FastAPI,
    *,
    key: str,
    allowed_hosts: Sequence[str],
    max_body_bytes: int,
    allowed_origins: Sequence[str] = (),
    error_bodies: Mapping[str, ErrorBody] | None = None,
) -> None:
    """Give `app` its middleware and its error handlers.

    `allowed_hosts` adds names to `LOCAL_HOSTS`. `error_bodies` says by path what errors look like where they are not
    OpenAI's: a dialect's path and all below it.
    """
    access = Access(key, LOCAL_HOSTS | {host.lower() for host in allowed_hosts})
    app.add_middleware(
        Edge,
        access=access,
        origins=Origins(allowed_origins),
        max_body_bytes=max_body_bytes,
        error_bodies=dict(error_bodies or {}),
    )
    app.router.redirect_slashes = False  # `routed` takes slashes off: a redirect would lose the key and the body
    install_errors(app)
    install_disconnect(app)


class Edge:
    """Pure ASGI middleware; holds no state of a request."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        origins: Origins,
        max_body_bytes: int,
        error_bodies: Mapping[str, ErrorBody],
    ) -> None:
        self._app, self._access, self._origins = app, access, origins
        self._max_body_bytes, self._error_bodies = max_body_bytes, error_bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._http(scope, receive, send)
            case "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": "there is no WebSocket here"})
            case _:
                await self._app(scope, receive, send)

    async def _http(self, asked: Scope, receive: Receive, send: Send) -> None:
        scope, headers = routed(asked), Headers(scope=asked)
        request_id = _request_id(headers)
        logs.request_id.set(request_id)
        error_body = body_for(scope["path"], self._error_bodies)
        # There is one key so far, so all data has one owner.
        scope.setdefault("state", {}).update(
            request_id=request_id, tenant=TENANT, error_body=error_body, method=asked["method"]
        )
        started_at, status = time.perf_counter(), 0
        if asked["method"] == "HEAD":
            receive, send = without_body(receive, send)
        send = in_our_words(send, error_body)

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
                self._origins.mark(message, headers)
            await send(message)

        try:
            answer = self._answered(asked, headers)
            if isinstance(answer, DuetError):
                answer = error_response(answer, error_body)
            receive = self._bounded(receive, headers)
            if answer is None and (encodings := encodings_of(headers)):
                scope, too_large = plain(scope), self._too_large(headers)
                receive = opened(receive, encodings, max_bytes=self._max_body_bytes, too_large=too_large)
            await (answer or self._app)(scope, receive, send_marked)
        except Exception as error:
            fault = _fault(error, request_id)
            if status:
                raise  # the answer has begun: the server closes the connection, which the client sees
            await error_response(fault, error_body)(scope, receive, send_marked)
        finally:
            _log_request(asked, status, started_at, request_id)

    def _answered(self, asked: Scope, headers: Headers) -> Response | DuetError | None:
        """The answer that no route gives: a refusal, or one to a browser's question. None: a route answers."""
        return (
            self._access.host_refusal(headers)
            or self._origins.preflight(asked["method"], headers)
            or self._access.key_refusal(asked["path"], headers)
            or self._unreadable(headers)
        )

    def _unreadable(self, headers: Headers) -> DuetError | None:
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return InvalidRequest("Content-Length is not a number", param="Content-Length")
        if headers.get("transfer-encoding", "chunked").lower() != "chunked":
            return UnsupportedEncoding("Transfer-Encoding can only be chunked", param="Transfer-Encoding")
        return self._too_large(headers) if int(length) > self._max_body_bytes else None

    def _too_large(self, headers: Headers) -> PayloadTooLarge:
        # Of a form's parts only `file` may be large: `parts.MAX_ALL_TEXT_BYTES` bounds the others.
        is_form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        message = f"the request body is larger than {self._max_body_bytes} bytes"
        return PayloadTooLarge(message, param="file" if is_form else None)

    def _bounded(self, receive: Receive, headers: Headers) -> Receive:
        """A chunked body has no Content-Length: count what comes."""
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._max_body_bytes:
                raise self._too_large(headers)
            return message

        return bounded


def routed(asked: Scope) -> Scope:
    """The scope by which a route is found: its path without doubled and final slashes, since people write base addresses with
    one too many; GET in place of HEAD."""
    path = _SLASHES.sub("/", asked["path"])
    method = "GET" if asked["method"] == "HEAD" else asked["method"]
    return {**asked, "path": path.rstrip("/") or "/", "method": method}


def without_body(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Both ends of a HEAD request: its answer ends after the headers, and a stream then sees its client leave."""
    ended = False

    async def send_start(message: Message) -> None:
        nonlocal ended
        if ended:
            return
        ended = True
        await send(message)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def receive_until_sent() -> Message:
        return {"type": "http.disconnect"} if ended else await receive()

    return receive_until_sent, send_start


def _fault(error: Exception, request_id: str) -> DuetError:
    """What the client is told of an error that no handler knew."""
    if isinstance(error, DuetError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        logger.warning("%s", error, extra={"action": "disk_full"})
        return DiskFull(
            f"the disk of $DUET_HOME takes no more ({error.strerror}): free space on it and send this again"
        )
    logger.error("unexpected error", exc_info=error, extra={"action": "internal_error", "request_id": request_id})
    return Internal(f"an unexpected error; the log has it under request id {request_id}")


def _log_request(asked: Scope, status: int, started_at: float, request_id: str) -> None:
    milliseconds = round(1000 * (time.perf_counter() - started_at))
    extra = {"action": "request", "status": status, "milliseconds": milliseconds, "request_id": request_id}
    level = logging.DEBUG if asked["path"] in OPEN_PATHS else logging.INFO
    logger.log(level, "%s %s", asked["method"], asked["path"], extra=extra)


def in_our_words(send: Send, error_body: ErrorBody) -> Send:
    """`send` for answers of a framework too: an error in plain text gets a body of ours."""
    replaced = False

    async def send_ours(message: Message) -> None:
        nonlocal replaced
        if replaced:
            return
        if message["type"] == "http.response.start" and message["status"] >= 400:
            headers = MutableHeaders(scope=message)
            if headers.get("content-type", "").startswith("text/plain"):
                replaced = True
                body = plain_error(message["status"], error_body)
                headers["Content-Type"], headers["Content-Length"] = "application/json", str(len(body))
                await send(message)
                await send({"type": "http.response.body", "body": body, "more_body": False})
                return
        await send(message)

    return send_ours


def _request_id(headers: Headers) -> str:
    """The client's own id if it is harmless in a log; otherwise a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
