"""Compressed request bodies (https://www.rfc-editor.org/rfc/rfc9110#section-8.4), opened piece by piece as they come.

A small body may hold a very large one, so no piece and no layer grows beyond its bound.
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from duet.errors import InvalidRequest, PayloadTooLarge, UnsupportedEncoding
from duet.http.errors import ACCEPTED_ENCODINGS

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_BYTES = 256 << 10
MAX_LAYERS = 3
"""Encodings of one body, such as gzip within zstd."""
MAX_MEMBERS = 10_000
"""Files that one stream of gzip or zstd may be joined from."""
_WINDOW_LOG = 23
"""Memory for zstd: 8 MiB, which is what RFC 9659 lets a sender expect."""
_PARAM = "Content-Encoding"


class _Stream(Protocol):
    """A decoder of the standard library: zlib's objects are made into this, zstd's are this."""

    def decompress(self, data: bytes, max_length: int) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


class _Zlib:
    """zlib hands back what it has not read yet; this keeps it, as zstd does."""

    def __init__(self, wbits: int) -> None:
        self._inner, self._tail = zlib.decompressobj(wbits), b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        found = self._inner.decompress(self._tail + data, max_length)
        self._tail = self._inner.unconsumed_tail
        return found

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data


def _gzip(_: bytes) -> _Stream:
    return _Zlib(zlib.MAX_WBITS | 16)


def _deflate(beginning: bytes) -> _Stream:
    """Some clients send bare deflate, which has no header of zlib's."""
    has_header = beginning[0] & 15 == zlib.DEFLATED and int.from_bytes(beginning[:2]) % 31 == 0
    return _Zlib(zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS)


def _zstd(_: bytes) -> _Stream:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})


_STREAMS: Mapping[str, Callable[[bytes], _Stream]] = {
    "gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate, "zstd": _zstd,
}  # fmt: skip


def encodings_of(headers: Headers) -> list[str]:
    """What was done to the body, in the order in which it must be undone. Raises `UnsupportedEncoding`."""
    found = [name.strip().lower() for name in ",".join(headers.getlist("content-encoding")).split(",")]
    found = [name for name in reversed(found) if name not in ("", "identity")]
    if len(found) > MAX_LAYERS:
        raise UnsupportedEncoding(
            f"Content-Encoding has {len(found)} encodings; at most {MAX_LAYERS} are undone", param=_PARAM
        )
    for name in found:
        if name not in _STREAMS:
            raise UnsupportedEncoding(
                f"Content-Encoding {name[:32]!r} is not known: send {ACCEPTED_ENCODINGS} or none", param=_PARAM
            )
    return found


def plain(scope: Scope) -> Scope:
    """The scope of the opened body: without the headers that describe the closed one."""
    headers = [pair for pair in scope["headers"] if pair[0] not in (b"content-encoding", b"content-length")]
    return {**scope, "headers": headers}


def opened(receive: Receive, encodings: Sequence[str], *, max_bytes: int, too_large: PayloadTooLarge) -> Receive:
    """The body as it was before its encodings. Raises `too_large` as soon as a layer is larger than `max_bytes`, and
    `InvalidRequest` for what is not encoded as it says."""
    layers = [_Layer(name, max_bytes, too_large) for name in encodings]
    pieces: Iterator[bytes] = iter(())
    more = True

    async def next_piece() -> Message:
        nonlocal pieces, more
        while True:
            piece = next(pieces, None)
            if piece is not None:
                await asyncio.sleep(0)  # others have their turn between two pieces
                return {"type": "http.request", "body": piece, "more_body": True}
            if not more:
                more = True  # what comes now is no body
                return {"type": "http.request", "body": b"", "more_body": False}
            message = await receive()
            if message["type"] != "http.request":
                return message
            more = message.get("more_body", False)
            pieces = _through(layers, message.get("body", b""), last=not more)

    return next_piece


def _through(layers: Sequence[_Layer], data: bytes, *, last: bool) -> Iterator[bytes]:
    if not layers:
        yield data
        return
    for piece in layers[0].opened(data):
        yield from _through(layers[1:], piece, last=False)
    if last:
        layers[0].finish()
        if layers[1:]:
            yield from _through(layers[1:], b"", last=True)


class _Layer:
    """One encoding of one body."""

    def __init__(self, name: str, max_bytes: int, too_large: PayloadTooLarge) -> None:
        self._name, self._left, self._too_large = name, max_bytes, too_large
        self._stream: _Stream | None = None
        self._members, self._beginning = 0, b""

    def opened(self, data: bytes) -> Iterator[bytes]:
        """What these bytes hold, in pieces."""
        while data or (self._stream is not None and not self._stream.eof):
            stream = self._begun(data)
            if stream is None:
                return
            data, self._beginning = self._beginning + data, b""
            try:
                piece = stream.decompress(data, PIECE_BYTES)
            except (zlib.error, zstd.ZstdError) as error:
                raise InvalidRequest(
                    f"the body is not {self._name}, although Content-Encoding says so", param=_PARAM
                ) from error
            self._left -= len(piece)
            if self._left < 0:
                raise self._too_large
            data = stream.unused_data if stream.eof else b""
            if piece:
                yield piece
            elif not data:
                return

    def finish(self) -> None:
        """Nothing follows. Raises `InvalidRequest` when something should."""
        if self._beginning or (self._stream is not None and not self._stream.eof):
            raise InvalidRequest(f"the body ends before its {self._name} does: it was cut off", param=_PARAM)

    def _begun(self, data: bytes) -> _Stream | None:
        """The decoder of the current member; None while too little has come to choose one."""
        if self._stream is not None and not self._stream.eof:
            return self._stream
        if len(self._beginning) + len(data) < 2:
            self._beginning += data
            return None
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise InvalidRequest(f"the body is more than {MAX_MEMBERS} pieces of {self._name}", param=_PARAM)
        self._stream = _STREAMS[self._name](self._beginning + data)
        return self._stream
