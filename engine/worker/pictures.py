"""Pictures of requests are decoded in a child, one request at a time, while the loop goes on."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from engine.pictures.decoder import PictureDecoder
from engine.pictures.messages import Pixels
from engine.types import Part, Priority
from engine.worker.scheduler.order import rank

_LOOK_SECONDS = 0.2
"""How often a request is looked after while its pictures are decoded."""


@dataclass(frozen=True)
class Picture:
    """`digest` names what the model sees: the same pixels have the same digest in whatever file they came."""

    image: Image.Image
    digest: bytes


class Viewer(Protocol):
    """A request that needs its pictures: a job. `pictures` is None until they are decoded."""

    id: str
    priority: Priority
    pictures: tuple[Picture, ...] | None


@dataclass(frozen=True)
class Decoded:
    """To the loop: the pictures of a request, or why there are none."""

    viewer: Viewer
    pictures: tuple[Picture, ...] | Exception


class PictureDesk:
    """Decodes for one request after another. Pixels are many times larger than files, so only one request has them at a time: the
    one that is encoded next. Everything but `_decode` belongs to the loop's thread."""

    def __init__(self, post: Callable[[Decoded], None], wanted: Callable[[str], bool]) -> None:
        """`wanted`: whether a request has not ended. It is also asked in the desk's thread."""
        self._post, self._wanted = post, wanted
        self._loop: asyncio.AbstractEventLoop | None = None
        self._decoder: PictureDecoder | None = None
        self._held_by: weakref.ref[Viewer] | None = None
        """Weak: when a request ends, its pixels go with it."""
        self.decoding = False

    def free_for(self, viewer: Viewer) -> bool:
        """Whether its pictures can be decoded now. A request that waits with its pictures loses them to a more urgent one: while
        batch work pauses that may be for long."""
        holder = self._holder()
        return not self.decoding and (holder is None or rank(viewer.priority) < rank(holder.priority))

    def begin(self, viewer: Viewer, parts: Sequence[Part]) -> None:
        """`Decoded` comes back through `post`. The desk must be free for it."""
        assert self.free_for(viewer)
        if (holder := self._holder()) is not None:
            holder.pictures = None
        self._held_by, self.decoding = weakref.ref(viewer), True
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._serve, args=(self._loop,), name="pictures", daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._decode(viewer, parts), self._loop)

    def received(self, decoded: Decoded) -> None:
        """It has come back. Raises the error of pictures that cannot be decoded."""
        self.decoding = False
        if isinstance(decoded.pictures, Exception):
            self._held_by = None
            raise decoded.pictures
        decoded.viewer.pictures = decoded.pictures

    def taken(self) -> None:
        """The pictures are being encoded now."""
        self._held_by = None

    def _holder(self) -> Viewer | None:
        viewer = None if self._held_by is None else self._held_by()
        return viewer if viewer is not None and self._wanted(viewer.id) else None

    def stop(self) -> None:
        """Decode nothing more. A child that is at work ends, another one when this process ends."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread."""
        try:
            loop.run_forever()
        finally:
            loop.run_until_complete(_cancel_all())
            loop.close()

    async def _decode(self, viewer: Viewer, parts: Sequence[Part]) -> None:
        found: list[Picture] = []
        result: tuple[Picture, ...] | Exception
        try:
            if self._decoder is None:
                self._decoder = PictureDecoder(children=1)
            for part in parts:
                found.append(await self._picture(viewer, self._decoder, part))
            result = tuple(found)
        except asyncio.CancelledError:
            result = ()  # nobody waits for it
        except Exception as error:  # noqa: BLE001 - the loop fails the request with it
            result = error
        self._post(Decoded(viewer, result))

    async def _picture(self, viewer: Viewer, decoder: PictureDecoder, part: Part) -> Picture:
        """Raises `CancelledError` when the request ends meanwhile, and `InvalidRequest`."""
        decoding = asyncio.ensure_future(decoder.decode(part.image, part.param))
        while not decoding.done():
            await asyncio.wait([decoding], timeout=_LOOK_SECONDS)
            if not self._wanted(viewer.id):
                decoding.cancel()
        return _picture(await decoding)


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _picture(pixels: Pixels) -> Picture:
    size = (pixels.width, pixels.height)
    digest = hashlib.sha256(b"%d x %d:" % size)
    digest.update(pixels.rgb)
    return Picture(Image.frombytes("RGB", size, pixels.rgb), digest.digest())
