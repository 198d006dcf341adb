"""Whose pictures are decoded, and who has them: one request at a time."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
import time
from collections.abc import Iterator

import pytest

from duet.errors import InvalidRequest
from engine.pictures.messages import Pixels
from engine.types import Part, Priority
from engine.worker import pictures
from engine.worker.pictures import Decoded, Picture, PictureDesk


class Children:
    """In the place of the child processes: each picture is one pixel of the colour that its file names."""

    hold = threading.Event()

    def __init__(self, *, children: int) -> None:
        assert children == 1

    async def decode(self, data: bytes, param: str) -> Pixels:
        while data == b"slow" and not self.hold.is_set():
            await asyncio.sleep(0.01)
        if data == b"bad":
            raise InvalidRequest("bad", param=param)
        return Pixels("", 1, 1, data[:3])


class Viewer:
    def __init__(self, name: str, priority: Priority = "normal") -> None:
        self.id, self.priority = name, priority
        self.pictures: tuple[Picture, ...] | None = None


class Worker:
    """The loop's side of a desk."""

    def __init__(self) -> None:
        self.mailbox = queue.SimpleQueue[Decoded]()
        self.ended = set[str]()
        self.desk = PictureDesk(self.mailbox.put, lambda name: name not in self.ended)

    def decode(self, viewer: Viewer, *files: bytes) -> None:
        self.desk.begin(viewer, [Part("image", image=data, param=f"i[{i}]") for i, data in enumerate(files)])

    def receive(self) -> None:
        self.desk.received(self.mailbox.get(timeout=10))


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setattr(pictures, "PictureDecoder", Children)
    monkeypatch.setattr(pictures, "_LOOK_SECONDS", 0.01)
    Children.hold.clear()
    worker = Worker()
    yield worker
    Children.hold.set()
    worker.desk.stop()
    while worker.desk._loop is not None and not worker.desk._loop.is_closed():
        time.sleep(0.01)


def test_the_pictures_of_one_request_at_a_time(worker: Worker) -> None:
    first, second = Viewer("first"), Viewer("second")
    assert worker.desk.free_for(first)
    worker.decode(first, b"red", b"blu", b"red")
    assert not worker.desk.free_for(second)
    worker.receive()
    assert first.pictures is not None
    assert [picture.image.tobytes() for picture in first.pictures] == [b"red", b"blu", b"red"]
    assert len({picture.digest for picture in first.pictures}) == 2
    assert not worker.desk.free_for(second), "the first has not been encoded yet"
    worker.desk.taken()
    assert worker.desk.free_for(second)


def test_a_more_urgent_request_takes_the_place_of_one_that_waits_with_its_pictures(worker: Worker) -> None:
    paused, urgent = Viewer("paused", "batch"), Viewer("urgent", "interactive")
    worker.decode(paused, b"red")
    assert not worker.desk.free_for(urgent), "not while it decodes"
    worker.receive()
    assert worker.desk.free_for(urgent)
    worker.decode(urgent, b"blu")
    assert paused.pictures is None
    worker.receive()
    assert urgent.pictures is not None
    assert not worker.desk.free_for(paused)


@pytest.mark.parametrize("file", [b"red", b"slow"])
def test_what_a_request_held_goes_with_it(worker: Worker, file: bytes) -> None:
    gone = Viewer("gone")
    worker.decode(gone, file, b"red")
    worker.ended.add("gone")
    worker.receive()
    del gone
    until = time.monotonic() + 10
    # The desk's thread may hold it a moment longer than its answer takes to come.
    while worker.desk._held_by is not None and worker.desk._held_by() is not None:
        assert time.monotonic() < until
        gc.collect()
        time.sleep(0.001)
    assert worker.desk.free_for(Viewer("next"))


def test_a_picture_that_cannot_be_decoded_leaves_the_desk_free(worker: Worker) -> None:
    viewer = Viewer("viewer")
    worker.decode(viewer, b"red", b"bad")
    with pytest.raises(InvalidRequest) as refused:
        worker.receive()
    assert refused.value.param == "i[1]"
    assert viewer.pictures is None
    assert worker.desk.free_for(Viewer("next"))
