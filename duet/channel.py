"""Length-prefixed msgpack structs over a Unix stream socket that a child process inherits from its parent.

A frame is four bytes of big-endian length and that many bytes of msgpack. The end of the stream is the end of the peer:
a parent sees its child die, and a child sees its parent die, without polling.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, NoReturn, TypeVar

import msgspec

from duet.errors import PayloadTooLarge

MAX_FRAME_BYTES = 1 << 30
_LENGTH = struct.Struct(">I")

In = TypeVar("In")


class ChannelClosed(Exception):
    """The peer has gone, cleanly or not."""


def _expected(head: bytes | memoryview) -> int:
    """The length that a head announces. Raises `ChannelClosed` for one beyond the limit: what follows cannot be read."""
    length: int = _LENGTH.unpack(head)[0]
    if length > MAX_FRAME_BYTES:
        raise ChannelClosed(f"a frame of {length} bytes exceeds the limit of {MAX_FRAME_BYTES}")
    return length


def frame(message: msgspec.Struct) -> bytes:
    """One message as bytes, for several receivers or for counting. Raises `PayloadTooLarge` before anything is sent, so the
    channel can still be used."""
    try:
        body = msgspec.msgpack.encode(message)
    except msgspec.EncodeError as error:  # a field of 4 GiB: msgpack has no length for it
        raise _too_large("4 GiB and more") from error
    if len(body) > MAX_FRAME_BYTES:
        raise _too_large(f"{len(body)} bytes")
    return _LENGTH.pack(len(body)) + body


def _too_large(size: str) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"{size} are too much for one message between processes, which takes {MAX_FRAME_BYTES}: send less at once"
    )


class AsyncChannel(asyncio.Protocol, Generic[In]):
    """The parent's end. One task reads: it calls `receive`, and after that it may call `forward`. Any task may call `send`.

    It is an asyncio protocol, not a pair of streams: a token then needs no task of its own on its way to the client.
    """

    def __init__(self, incoming: Any) -> None:
        """`incoming` is the union of struct types that may arrive. Made by `open`."""
        self._decoder: msgspec.msgpack.Decoder[In] = msgspec.msgpack.Decoder(incoming)
        self._transport: asyncio.Transport | None = None
        self._data = bytearray()
        self._received: deque[In] = deque()
        self._take: Callable[[In], None] = self._received.append
        self._news = asyncio.Event()
        """Set when a message has come, or when no more will come."""
        self._writable, self._lost = asyncio.Event(), asyncio.Event()
        self._writable.set()
        self._end: Exception | None = None

    @classmethod
    async def open(cls, end: socket.socket, incoming: Any) -> AsyncChannel[In]:
        """A channel on a connected socket, which it owns from now on."""
        end.setblocking(False)
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(partial(cls, incoming), sock=end)
        return channel

    async def send(self, message: msgspec.Struct) -> None:
        """Returns when the peer keeps up. Raises `ChannelClosed`, or `PayloadTooLarge` before anything is written."""
        transport = self._transport
        if transport is None or transport.is_closing() or self._lost.is_set():
            raise ChannelClosed
        transport.write(frame(message))
        await self._writable.wait()
        if self._lost.is_set():
            raise ChannelClosed

    async def receive(self) -> In:
        """The next message. Raises `ChannelClosed` when the peer has ended, and `DecodeError` for bytes that are no message."""
        while not self._received:
            if self._end is not None:
                raise self._end
            self._news.clear()
            await self._news.wait()
        return self._received.popleft()

    async def forward(self, take: Callable[[In], None]) -> NoReturn:
        """Call `take` with every message, those received before included, until the end. Raises as `receive` does. What `take`
        raises is raised here, and `take` gets no more messages."""
        while self._received:
            take(self._received.popleft())
        self._take = take
        while self._end is None:
            self._news.clear()
            await self._news.wait()
        raise self._end

    async def close(self) -> None:
        """Returns once the peer has taken everything sent, or has gone. A caller that stops waiting may call it again."""
        if self._transport is not None:
            self._transport.close()
        await self._lost.wait()

    # What the event loop calls ---------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._end is not None:
            return
        self._data += data
        try:
            self._read_frames()
        except Exception as error:  # noqa: BLE001 - it ends the channel, and `receive` raises it
            self._finish(error)

    def _read_frames(self) -> None:
        at, size = 0, len(self._data)
        with memoryview(self._data) as view:
            while size - at >= _LENGTH.size:
                stop = at + _LENGTH.size + _expected(view[at : at + _LENGTH.size])
                if stop > size:
                    break
                self._take(self._decoder.decode(view[at + _LENGTH.size : stop]))
                at = stop
        del self._data[:at]
        if at:
            self._news.set()

    def _finish(self, error: Exception) -> None:
        self._end = self._end or error
        self._news.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        closed = ChannelClosed()
        closed.__cause__ = error
        self._finish(closed)
        self._lost.set()
        self._writable.set()


class BlockingChannel(Generic[In]):
    """The child's end. One thread receives; any thread may send."""

    def __init__(self, end: socket.socket, incoming: Any) -> None:
        end.setblocking(True)
        self._end = end
        self._file = end.makefile("rb", buffering=1 << 16)
        self._decoder: msgspec.msgpack.Decoder[In] = msgspec.msgpack.Decoder(incoming)
        self._sending = threading.Lock()

    @classmethod
    def from_fd(cls, fd: int, incoming: Any) -> BlockingChannel[In]:
        return cls(socket.socket(fileno=fd), incoming)

    def send(self, message: msgspec.Struct) -> None:
        """As `AsyncChannel.send`; blocks until the peer has room."""
        data = frame(message)
        try:
            with self._sending:
                self._end.sendall(data)
        except OSError as error:
            raise ChannelClosed from error

    def receive(self) -> In:
        try:
            head = self._file.read(_LENGTH.size)
            body = self._file.read(_expected(head)) if len(head) == _LENGTH.size else b""
        except OSError as error:
            raise ChannelClosed from error
        if len(head) < _LENGTH.size or len(body) < _LENGTH.unpack(head)[0]:
            raise ChannelClosed
        return self._decoder.decode(body)
