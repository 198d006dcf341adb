"""Forms with uploads: a route of `FormRoute` gets its fields checked, and its uploads as files of the service's spool.

python-multipart cuts the parts. Starlette's own reader keeps the first MiB of an upload in memory and the rest in the system's
temporary folder, takes up to a GiB of text, does not see that a form was cut off, and does not say where a fault is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, get_args, get_origin

from fastapi import Request, Response, params
from fastapi.routing import APIRoute
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MAX_BOUNDARY_LENGTH, MultipartParser, parse_options_header
from starlette.datastructures import FormData, Headers
from starlette.requests import ClientDisconnect

from duet.errors import InvalidRequest
from duet.http.disconnect import ClientGone
from duet.http.parts import HOW, MAX_PART_HEADER_BYTES, MAX_PART_HEADERS, Fields, Parts
from duet.http.spool import Spool, disk_full


class FormRoute(APIRoute):
    """A route whose form goes through the app's `state.spool`. Routes without a form are as they were."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, found = super().get_route_handler(), declared(self)
        if not found.uploads:
            return handle

        async def read_and_handle(request: Request) -> Response:
            spool: Spool = request.app.state.spool
            async with spool.room() as room, AsyncExitStack() as files:
                reading = _FormRequest(request.scope, request.receive)
                reading._form = await read_form(request, found, room, files, max_bytes=spool.max_bytes)
                return await handle(reading)

        return read_and_handle


class _FormRequest(Request):
    """A request whose form has been read."""

    _form: FormData | None


def declared(route: APIRoute) -> Fields:
    """The fields of a route's form, by its signature."""
    fields = [field for field in route.dependant.body_params if isinstance(field.field_info, params.Form)]
    uploads = frozenset(field.alias for field in fields if isinstance(field.field_info, params.File))
    texts = frozenset(field.alias for field in fields) - uploads
    return Fields(uploads, texts, texts - {field.alias for field in fields if _is_list(field.field_info.annotation)})


def _is_list(annotation: Any) -> bool:
    return any(get_origin(one) is list for one in (annotation, *get_args(annotation)))


async def read_form(request: Request, fields: Fields, room: Path, files: AsyncExitStack, *, max_bytes: int) -> FormData:
    """The form of a request. Uploads lie in `room` and are closed with `files`.

    Raises `InvalidRequest` that says which field is wrong and how, `DiskFull`, and `ClientGone` when the client leaves.
    """
    reader = Parts(fields, room, files, max_bytes)
    parser = _parser(request.headers, reader)
    try:
        async for chunk in _chunks(request):
            try:
                parser.write(chunk)
            except FormParserError as error:
                raise reader.unreadable() from error
            await reader.write()
        await reader.write(last=True)
    except OSError as error:
        raise disk_full(error) from error
    return reader.form()


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect as error:
        raise ClientGone from error


def _parser(headers: Headers, reader: Parts) -> MultipartParser:
    kind, options = parse_options_header(headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        sent = headers.get("content-type", "")[:100]
        found = f"has the Content-Type {sent!r}" if sent else "has no Content-Type"
        raise InvalidRequest(f"the body {found}, but an upload comes as multipart/form-data: {HOW}", param="file")
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= MAX_BOUNDARY_LENGTH:
        found = f"a boundary of {len(boundary)} bytes (at most {MAX_BOUNDARY_LENGTH})" if boundary else "no boundary"
        raise InvalidRequest(f"the header Content-Type has {found}: {HOW}", param="Content-Type")
    return MultipartParser(
        boundary,
        {
            "on_part_begin": reader.on_part_begin,
            "on_header_begin": reader.on_header_begin,
            "on_header_field": reader.on_header_field,
            "on_header_value": reader.on_header_value,
            "on_headers_finished": reader.on_headers_finished,
            "on_part_data": reader.on_part_data,
            "on_part_end": reader.on_part_end,
            "on_end": reader.on_end,
        },
        max_header_count=MAX_PART_HEADERS,
        max_header_size=MAX_PART_HEADER_BYTES,
    )
