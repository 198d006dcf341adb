"""What an error looks like to a client. The middleware asks one function, chosen by path; a dialect brings its own."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from duet.errors import DuetError, InvalidRequest, MethodNotAllowed, NotFound

logger = logging.getLogger(__name__)

ACCEPTED_ENCODINGS = "gzip, deflate, zstd"
"""Of a request's body."""

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
    if error.status == 415:
        headers["Accept-Encoding"] = ACCEPTED_ENCODINGS
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    return Response(body(error), error.status, headers, media_type="application/json")


_SUBJECT = re.compile(r"^(Input|String|List|Tuple|Set|Dictionary|Value|Bytes|Text) should ")
"""How Pydantic begins: the field's name stands before it here."""


def plain_error(status: int, body: ErrorBody) -> bytes:
    """Our words in place of a framework's, for an error that none of our handlers saw: a bad Range header, for instance."""
    said = InvalidRequest(f"this request cannot be answered as it is ({HTTPStatus(status).phrase.lower()})")
    said.status, said.code = status, f"http_{status}"
    return body(said)


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
    name = ""
    for part in place:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else str(part)
    message = (
        first["msg"]
        .removeprefix("Value error, ")
        .replace("Input should", "must")
        .replace("Field required", "is missing")
    )
    return InvalidRequest(f"{name}: {message}" if name else message, param=name or None)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    body: ErrorBody = request.state.error_body
    if isinstance(error.__cause__, DuetError):  # FastAPI wraps what is raised while it reads a body
        return error_response(error.__cause__, body)
    method, path = request.scope["state"]["method"], request.url.path
    if error.status_code == 404:
        return error_response(NotFound(f"there is no {method} {path} here (GET /docs lists what there is)"), body)
    if error.status_code == 405:
        allowed = ", ".join(methods_of(request))
        if method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": allowed})
        return error_response(MethodNotAllowed(f"{path} takes {allowed}, not {method}"), body, {"Allow": allowed})
    logger.warning("an error of the framework: %s", error, extra={"action": "framework_error"})
    return error_response(InvalidRequest("the request cannot be read"), body)


def methods_of(request: Request) -> list[str]:
    """The methods that the path of `request` has. Where GET is, HEAD is too."""
    routes = request.app.router.routes
    scope = {**request.scope, "type": "http"}
    found = [
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    return (["GET", "HEAD", *found[1:]] if found[:1] == ["GET"] else found) + ["OPTIONS"]
