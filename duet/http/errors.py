"""What an error looks like to a client. The middleware asks one function, chosen by path; a dialect brings its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from duet.errors import DuetError, InvalidRequest, NotFound

logger = logging.getLogger(__name__)

ErrorBody = Callable[[DuetError], bytes]
"""The JSON body of an error."""


def envelope(error: DuetError) -> bytes:
    """OpenAI's error object (https://platform.openai.com/docs/guides/error-codes). It repeats the seconds of `Retry-After`,
    since an event of a stream has no headers."""
    said = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    retry = {} if error.retry_after_seconds is None else {"retry_after": error.retry_after_seconds}
    return msgspec.json.encode({"error": said | retry})


def body_for(path: str, bodies: Mapping[str, ErrorBody]) -> ErrorBody:
    """The body of errors at `path`. A key of `bodies` counts for its path and all paths below it; others get `envelope`."""
    for prefix, body in bodies.items():
        if path == prefix or path.startswith(f"{prefix}/"):
            return body
    return envelope


def error_response(error: DuetError, body: ErrorBody, more: Mapping[str, str] | None = None) -> Response:
    """`more` are headers beside the ones that the error itself asks for."""
    headers = dict(more or {})
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    return Response(body(error), error.status, headers, media_type="application/json")


def install_errors(app: FastAPI) -> None:
    """Give `app` handlers for our own errors, FastAPI's, and Starlette's. They answer with `request.state.error_body`."""
    app.add_exception_handler(DuetError, _on_duet_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)


async def _on_duet_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DuetError)
    if error.status >= 500:
        logger.warning("%s", error.message, extra={"action": "request_failed", "code": error.code})
    return error_response(error, request.state.error_body)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(explain_validation(error.errors()), request.state.error_body)


def explain_validation(errors: Sequence[Any]) -> InvalidRequest:
    """Pydantic's first complaint as one sentence, with the parameter's path as OpenAI writes it."""
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


class _HttpError(DuetError):
    """An error that HTTP itself knows, such as a method that a path does not have."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, f"http_{status}"
        self.kind = "invalid_request_error" if status < 500 else "server_error"


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body: ErrorBody = request.state.error_body
    if isinstance(error.__cause__, DuetError):  # FastAPI wraps what `receive` raises while it reads a body
        return error_response(error.__cause__, body)
    if error.status_code == 404:
        missing = NotFound(f"there is no {request.method} {request.url.path} here (GET /docs lists what there is)")
        return error_response(missing, body)
    return error_response(_HttpError(error.status_code, str(error.detail)), body, error.headers)
