"""Bodies of JSON: a route of `JsonRoute` gets its body read, parsed and checked before FastAPI, and its faults told by name.

FastAPI parses and checks on the event loop, which a body of some MB holds up, and takes JSON only with the right Content-Type.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, cast

from fastapi import Request, Response, params
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from duet.errors import Busy, DuetError, InvalidRequest, PayloadTooLarge
from duet.http.disconnect import ClientGone
from duet.http.errors import explain_validation

THREAD_BYTES = 128 << 10
"""A longer body is parsed and checked in a thread: below, that takes less than the thread's turn would cost others."""
MAX_HELD_BYTES = 512 << 20
"""Of all bodies that a route reads at the same time."""
MAX_VALUES = 1_000_000
"""Commas and opening brackets of a body, those in its texts too: every value becomes an object of 50 bytes and more."""

_UTF8 = frozenset({b"", b"utf-8", b"utf8", b"us-ascii", b"ascii"})
_HOW = "send a JSON object in UTF-8"


class JsonRoute(APIRoute):
    """A route whose body is one JSON object. Routes without such a body are as they were."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        fields = self.dependant.body_params
        if len(fields) != 1 or isinstance(fields[0].field_info, params.Form):
            return handle
        bodies = Bodies(TypeAdapter(cast(Any, fields[0].field_info.annotation)))

        async def read_and_handle(request: Request) -> Response:
            return await handle(_ReadRequest(request, await bodies.read(request)))

        return read_and_handle


class _ReadRequest(Request):
    """A request whose body has been read. FastAPI takes `body` as it is, because it is checked."""

    def __init__(self, request: Request, body: Any) -> None:
        super().__init__(_as_json(request.scope), request.receive)
        self._body, self._json = b"{}", body


def _as_json(scope: Scope) -> Scope:
    headers = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", b"application/json")]}


class Bodies:
    """Reads the bodies of one route. One long body at a time is parsed, since threads would only take turns."""

    def __init__(self, checked: TypeAdapter[Any]) -> None:
        self._checked, self._parsing = checked, asyncio.Lock()
        self._held = 0

    async def read(self, request: Request) -> Any:
        """The checked body. Raises `InvalidRequest` that names what is wrong with it, and `Busy`."""
        charset = _charset(request)
        pieces: list[bytes] = []
        held = 0
        try:
            async for piece in request.stream():
                pieces.append(piece)
                held += len(piece)
                self._held += len(piece)
                if self._held > MAX_HELD_BYTES:
                    raise Busy("requests with large bodies are under way; send it again")
            data = b"".join(pieces)
            pieces.clear()
            if len(data) < THREAD_BYTES:
                return self._parsed(data, charset)
            async with self._parsing:
                return await asyncio.to_thread(self._parsed, data, charset)
        except ClientDisconnect as error:
            raise ClientGone from error
        finally:
            self._held -= held

    def _parsed(self, data: bytes, charset: bytes) -> Any:
        found = parsed(data, charset)
        try:
            return self._checked.validate_python(found)
        except ValidationError as error:
            raise explain_validation(
                error.errors(include_url=False, include_context=False, include_input=False)
            ) from None


def _charset(request: Request) -> bytes:
    """What the Content-Type says of the text. Any type is taken but that of a form with parts: clients send JSON as
    text/plain, as a form or without a type."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind.startswith(b"multipart/"):
        raise InvalidRequest(f"the body is a form, but this path takes JSON: {_HOW}", param="Content-Type")
    return options.get(b"charset", b"").lower()


def parsed(data: bytes, charset: bytes = b"") -> dict[str, Any]:
    """The JSON object that `data` is. Raises `InvalidRequest` that says where and how it is none."""
    text = _text(data.removeprefix(b"\xef\xbb\xbf"), charset)
    if not text.strip():
        raise InvalidRequest(f"the body is empty: {_HOW}")
    if len(data) >= THREAD_BYTES and sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise PayloadTooLarge(f"the body has more than {MAX_VALUES} values")
    try:
        found = json.loads(text, parse_constant=_no_number)
    except _NoNumberError as error:
        raise _named_constant(text, str(error)) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidRequest(
            f"the body is not JSON: {error.msg[:1].lower()}{error.msg[1:]} at {where}: {_HOW}"
        ) from None
    except RecursionError:
        raise InvalidRequest("the body is not taken: its lists and objects are nested too deeply") from None
    except ValueError:  # the interpreter's bound on digits
        raise InvalidRequest("the body is not taken: a whole number in it has more than 4300 digits") from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"the body is {_KINDS[type(found)]}: {_HOW}")
    return found


_KINDS = {
    list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false", type(None): "null",
}  # fmt: skip


def _text(data: bytes, charset: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data[:4]:
        raise InvalidRequest(f"the body is UTF-16 or UTF-32: {_HOW}")
    if charset not in _UTF8 and not data.isascii():
        shown = charset.decode("latin-1")[:32]
        raise InvalidRequest(f"the Content-Type says that the body is {shown!r}: {_HOW}", param="Content-Type")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 (byte {error.start}): {_HOW}") from None


class _NoNumberError(Exception):
    """`NaN`, `Infinity` or `-Infinity`, which some libraries write and JSON does not have."""


def _no_number(constant: str) -> NoReturn:
    raise _NoNumberError(constant)


def _named_constant(text: str, constant: str) -> DuetError:
    """The refusal of a constant, with the path of the first field that has one."""
    mark = object()
    unnamed = InvalidRequest(f"the body has {constant}, which is not JSON: send a number or null")
    try:
        waiting: list[tuple[str, Any]] = [("", json.loads(text, parse_constant=lambda _: mark))]
    except (ValueError, RecursionError):
        return unnamed  # it is broken elsewhere too
    while waiting:
        path, value = waiting.pop()
        if value is mark:
            return InvalidRequest(
                f"{path or 'the body'}: {constant} is not JSON; send a number or null", param=path or None
            )
        if isinstance(value, dict):
            waiting += [(f"{path}.{name}" if path else name, inner) for name, inner in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [(f"{path}[{index}]", inner) for index, inner in reversed([*enumerate(value)])]
    return unnamed
