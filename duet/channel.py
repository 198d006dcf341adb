"""Length-prefixed msgpack structs over a Unix stream socket that a child process inherits from its parent.

A frame is four bytes of big-endian length and that many bytes of msgpack. The end of the stream is the end of the peer:
a parent sees its child die, and a child sees its parent die, without polling.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from typing import Any, Generic, TypeVar

import msgspec

from duet.errors import PayloadTooLarge

MAX_FRAME_BYTES = 1 << 30
_LENGTH = struct.Struct(">I")

In = TypeVar("In")


class ChannelClosed(Exception):
    """The peer has gone, cleanly or not."""


def _expected(head: bytes) -> int:
    """The length that a head announces. A peer that announces more than any may send cannot be followed any further."""
    length: int = _LENGTH.unpack(head)[0]
    if length > MAX_FRAME_BYTES:
        raise ChannelClosed(f"a frame of {length} bytes exceeds the limit of {MAX_FRAME_BYTES}")
    return length


def frame(message: msgspec.Struct) -> bytes:
    """One message as bytes, for several receivers or for counting. Raises `PayloadTooLarge`: nothing was sent then, and the
    channel is as good as before."""
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


class AsyncChannel(Generic[In]):
    """The parent's end. One reader task; `send` may be called from any task of the loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, incoming: Any) -> None:
        self._reader, self._writer = reader, writer
        self._decoder: msgspec.msgpack.Decoder[In] = msgspec.msgpack.Decoder(incoming)

    @classmethod
    async def open(cls, end: socket.socket, incoming: Any) -> AsyncChannel[In]:
        """`incoming` is the union of struct types that may arrive."""
        end.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=end, limit=1 << 20)
        return cls(reader, writer, incoming)

    async def send(self, message: msgspec.Struct) -> None:
        """Returns when the peer keeps up. Raises `ChannelClosed`, and `PayloadTooLarge` before anything is written."""
        if self._writer.is_closing():
            raise ChannelClosed
        try:
            self._writer.write(frame(message))
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise ChannelClosed from error

    async def receive(self) -> In:
        try:
            head = await self._reader.readexactly(_LENGTH.size)
            body = await self._reader.readexactly(_expected(head))
        except (asyncio.IncompleteReadError, OSError) as error:
            raise ChannelClosed from error
        return self._decoder.decode(body)

    async def close(self) -> None:
        """Returns once the peer has taken what was sent, or has gone. A caller that gives up waiting may call again."""
        self._writer.close()
        try:
            # Shielded: whoever is cancelled in `wait_closed` cancels the one future that all others wait for.
            await asyncio.shield(self._writer.wait_closed())
        except OSError:
            return  # the peer closed first: closed is what was asked for


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
        """As `AsyncChannel.send`; waits for the peer."""
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
