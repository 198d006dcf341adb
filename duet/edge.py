"""The HTTP edge of both services: who may call, how much they may send, and how an error looks.

Order, outermost first: request id and the one log line, Host allow-list, API key, body bound. Written as plain ASGI,
since Starlette's BaseHTTPMiddleware hides a client's disconnect from streaming routes.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import re
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from duet import logs
from duet.errors import DuetError, ForbiddenHost, Internal, InvalidRequest, NotFound, PayloadTooLarge, Unauthorized

logger = logging.getLogger(__name__)

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]", "host.docker.internal"})
TENANT = "primary"
"""Requests of different tenants share nothing that was derived from their content."""
OPEN_PATHS = frozenset({"/health", "/ready"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def envelope(error: DuetError) -> dict[str, Any]:
    """OpenAI's error object, with the seconds of `Retry-After` where it has any: an event of a stream has no headers."""
    said = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    retry = {} if error.retry_after_seconds is None else {"retry_after": error.retry_after_seconds}
    return {"error": said | retry}


def error_response(error: DuetError) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    return JSONResponse(envelope(error), error.status, headers)


def install_edge(
    app: FastAPI,
    *,
    key: str,
    allowed_hosts: Sequence[str],
    max_body_bytes: int,
    open_paths: frozenset[str] = OPEN_PATHS,
) -> None:
    """Give `app` its middleware and its error handlers. `allowed_hosts` adds names to `LOCAL_HOSTS`."""
    hosts = LOCAL_HOSTS | {host.lower() for host in allowed_hosts}
    app.add_middleware(Edge, key=key, hosts=hosts, max_body_bytes=max_body_bytes, open_paths=open_paths)
    app.add_exception_handler(DuetError, _on_duet_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)


class Edge:
    """Pure ASGI middleware; holds no state of a request."""

    def __init__(
        self, app: ASGIApp, *, key: str, hosts: frozenset[str], max_body_bytes: int, open_paths: frozenset[str]
    ) -> None:
        self._app, self._key, self._hosts = app, key.encode(), hosts
        self._max_body_bytes, self._open_paths = max_body_bytes, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": "there is no WebSocket here"})
                return
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        logs.request_id.set(request_id)
        scope.setdefault("state", {})["request_id"] = request_id
        started_at, status = time.perf_counter(), 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            # Whose data this is: the primary key is the only one yet.
            scope["state"]["tenant"] = TENANT
            if refusal := self._refusal(scope["path"], headers):
                await error_response(refusal)(scope, receive, send_marked)
            else:
                await self._app(scope, self._bounded(receive, headers), send_marked)
        except Exception as error:
            if isinstance(error, DuetError):
                fault: DuetError = error
            else:
                logger.exception("unexpected error", extra={"action": "internal_error", "request_id": request_id})
                fault = Internal(f"an unexpected error; the log has it under request id {request_id}")
            if status:
                raise  # the answer has begun: the server closes the connection, which the client sees
            await error_response(fault)(scope, receive, send_marked)
        finally:
            logger.log(
                logging.DEBUG if scope["path"] in self._open_paths else logging.INFO,
                "%s %s",
                scope["method"],
                scope["path"],
                extra={
                    "action": "request",
                    "status": status,
                    "milliseconds": round(1000 * (time.perf_counter() - started_at)),
                    "request_id": request_id,
                },
            )

    def _refusal(self, path: str, headers: Headers) -> DuetError | None:
        host = _host_name(headers.get("host", ""))
        if host not in self._hosts:
            return ForbiddenHost(f"Host {host!r} is not allowed: add it to allowed_hosts in config.toml if it is yours")
        if path not in self._open_paths:
            sent = _sent_key(headers)
            if not sent:
                return Unauthorized("no API key: send 'Authorization: Bearer KEY' (`duet key` prints it)")
            if not hmac.compare_digest(sent.encode(), self._key):
                return Unauthorized("this API key is wrong (`duet key` prints the right one)")
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return InvalidRequest("Content-Length is not a number")
        return self._too_large(headers) if int(length) > self._max_body_bytes else None

    def _too_large(self, headers: Headers) -> PayloadTooLarge:
        # Of a form's parts only `file` may be large: Starlette bounds each of the others to 1 MiB.
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


def _host_name(header: str) -> str:
    """The name without its port; an IPv6 address keeps its brackets."""
    header = header.strip().lower()
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.partition(":")[0]


def _sent_key(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()


async def _on_duet_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DuetError)
    if error.status >= 500:
        logger.warning("%s", error.message, extra={"action": "request_failed", "code": error.code})
    return error_response(error)


async def _on_validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return error_response(explain_validation(error.errors()))


def explain_validation(errors: Sequence[Any]) -> InvalidRequest:
    """The first of pydantic's complaints as one sentence, with the parameter's path as OpenAI writes it."""
    first = errors[0]
    place = [part for part in first["loc"] if part not in ("body", "query", "path", "header")]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return InvalidRequest(f"the body is not valid JSON: {reason}")
    name = ""
    for part in place:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
    message = first["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"{name}: {message}" if name else message, param=name or None)


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, DuetError):  # FastAPI wraps what `receive` raises while it reads a body
        return error_response(error.__cause__)
    if error.status_code == 404:
        return error_response(
            NotFound(f"there is no {request.method} {request.url.path} here (GET /docs lists what there is)")
        )
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    body = {"error": {"message": str(error.detail), "type": kind, "param": None, "code": f"http_{error.status_code}"}}
    return JSONResponse(body, error.status_code, error.headers)


def run_server(app: FastAPI, host: str, port: int, *, log_level: str) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. 1, with the cause and the fix, when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        logger.error(  # noqa: TRY400 - the cause is in the line, a traceback would bury it
            "cannot listen on %s:%d: %s; stop what uses the port or set another one",
            host,
            port,
            error.strerror,
            extra={"action": "port_taken"},
        )
        return 1
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", log_config=None, log_level=log_level, access_log=False,
        server_header=False, timeout_graceful_shutdown=5,
    )  # fmt: skip
    logger.info("listening", extra={"action": "listening", "host": host, "port": listener.getsockname()[1]})
    _Server(config).run(sockets=[listener])
    return 0


class _Server(uvicorn.Server):
    """Ends with our exit code: uvicorn's own raises SIGTERM once more after it has shut down, and the process dies of it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()
