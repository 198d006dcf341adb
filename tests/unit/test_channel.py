"""Framing: whole messages in order, both directions, and every kind of end."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Iterator

import msgspec
import pytest

from duet import channel
from duet.channel import MAX_FRAME_BYTES, AsyncChannel, BlockingChannel, ChannelClosed, frame
from duet.errors import PayloadTooLarge


class Note(msgspec.Struct, tag="note"):
    number: int
    data: bytes = b""


class Other(msgspec.Struct, tag="other"):
    pass


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    pair = socket.socketpair()
    yield pair
    for end in pair:
        end.close()


async def test_messages_arrive_whole_and_in_order(ends: tuple[socket.socket, socket.socket]) -> None:
    parent: AsyncChannel[Note] = await AsyncChannel.open(ends[0], Note)
    child: BlockingChannel[Note] = BlockingChannel(ends[1], Note)
    notes = [Note(number, b"x" * size) for number, size in enumerate((0, 1, 70_000, 3_000_000))]

    def echo() -> None:
        for _ in notes:
            child.send(child.receive())

    echoing = asyncio.create_task(asyncio.to_thread(echo))
    sending = [asyncio.create_task(parent.send(note)) for note in notes]
    assert [await parent.receive() for _ in notes] == notes
    await asyncio.gather(echoing, *sending)
    await parent.close()


async def test_the_end_of_the_peer_is_the_end_of_the_channel(ends: tuple[socket.socket, socket.socket]) -> None:
    parent: AsyncChannel[Note] = await AsyncChannel.open(ends[0], Note)
    ends[1].sendall(frame(Note(1))[:-1])  # it died in the middle of a message
    ends[1].close()
    with pytest.raises(ChannelClosed):
        await parent.receive()
    with pytest.raises(ChannelClosed):
        while True:
            await parent.send(Note(2, b"x" * 1_000_000))
    await parent.close()
    with pytest.raises(ChannelClosed):
        await parent.send(Note(3))


async def test_whatever_the_system_says_of_the_socket_is_the_end_of_the_channel(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    parent: AsyncChannel[Note] = await AsyncChannel.open(ends[0], Note)
    parent.connection_lost(OSError(errno.EIO, "input/output error"))
    with pytest.raises(ChannelClosed):
        await parent.receive()
    with pytest.raises(ChannelClosed):
        await parent.send(Note(1))
    await parent.close()


async def test_messages_are_forwarded_in_order_from_the_first_that_nobody_took(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    parent: AsyncChannel[Note] = await AsyncChannel.open(ends[0], Note)
    whole = b"".join(frame(Note(number, b"x" * 10 * number)) for number in range(20))
    ends[1].sendall(whole[:300])
    assert await parent.receive() == Note(0)
    taken: list[int] = []
    forwarding = asyncio.create_task(parent.forward(lambda note: taken.append(note.number)))
    for start in range(300, len(whole), 7):
        ends[1].sendall(whole[start : start + 7])
        await asyncio.sleep(0)
    ends[1].close()
    with pytest.raises(ChannelClosed):
        await forwarding
    assert taken == [*range(1, 20)]
    await parent.close()


async def test_what_a_taker_raises_ends_the_channel_for_its_reader(ends: tuple[socket.socket, socket.socket]) -> None:
    parent: AsyncChannel[Note] = await AsyncChannel.open(ends[0], Note)
    ends[1].sendall(b"".join(frame(Note(number)) for number in (2, 1, 0, 5)))
    taken: list[float] = []
    with pytest.raises(ZeroDivisionError):
        await parent.forward(lambda note: taken.append(1 / note.number))
    assert taken == [0.5, 1.0]
    await parent.close()


async def test_what_is_no_message_is_told_to_the_reader(ends: tuple[socket.socket, socket.socket]) -> None:
    parent: AsyncChannel[Note] = await AsyncChannel.open(ends[0], Note)
    ends[1].sendall(frame(Note(1)) + frame(Other()))
    assert await parent.receive() == Note(1)
    with pytest.raises(msgspec.DecodeError):
        await parent.receive()
    await parent.close()


@pytest.mark.parametrize("kept_bytes", [0, 2, 4, 6])
def test_a_child_sees_its_parent_die_in_any_place(ends: tuple[socket.socket, socket.socket], kept_bytes: int) -> None:
    child: BlockingChannel[Note] = BlockingChannel(ends[1], Note)
    ends[0].sendall(frame(Note(1))[:kept_bytes])
    ends[0].close()
    with pytest.raises(ChannelClosed):
        child.receive()
    with pytest.raises(ChannelClosed):
        while True:
            child.send(Note(2, b"x" * 1_000_000))


async def test_a_length_beyond_the_limit_is_never_waited_for(ends: tuple[socket.socket, socket.socket]) -> None:
    parent: AsyncChannel[Note] = await AsyncChannel.open(ends[0], Note)
    ends[1].sendall(struct.pack(">I", MAX_FRAME_BYTES + 1))
    with pytest.raises(ChannelClosed, match="exceeds the limit"):
        await parent.receive()
    await parent.close()


async def test_a_message_beyond_the_limit_is_refused_before_anything_is_written(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "MAX_FRAME_BYTES", 1000)
    parent: AsyncChannel[Note] = await AsyncChannel.open(ends[0], Note)
    child: BlockingChannel[Note] = BlockingChannel(ends[1], Note)
    for number in range(3):
        with pytest.raises(PayloadTooLarge, match="which takes 1000"):
            await parent.send(Note(0, b"x" * 1000))
        with pytest.raises(PayloadTooLarge):
            child.send(Note(0, b"x" * 1000))
        await parent.send(Note(number))
        assert child.receive() == Note(number)
        child.send(Note(number))
        assert await parent.receive() == Note(number)
    await parent.close()


def test_a_field_that_msgpack_has_no_length_for_is_too_large_as_well() -> None:
    with pytest.raises(PayloadTooLarge, match="4 GiB"):
        frame(Note(0, bytes(1 << 32)))  # zeros that nobody reads take no memory


async def test_a_message_of_another_kind_is_an_error(ends: tuple[socket.socket, socket.socket]) -> None:
    parent: AsyncChannel[Note] = await AsyncChannel.open(ends[0], Note)
    ends[1].sendall(frame(Other()))
    with pytest.raises(msgspec.ValidationError):
        await parent.receive()
    await parent.close()
