"""Images of a request: data URLs, and public http(s) addresses, which are checked before they are fetched. Never a local path.
Their sizes are read from their headers at once; a model's worker has them decoded when it is their turn."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from typing import Annotated, Final

import httpx
from fastapi import Depends, Request

from duet.errors import Busy, DeadlineExceeded, InvalidRequest, PayloadTooLarge
from engine.api.shared.addresses import is_public
from engine.api.shared.data_urls import decoded
from engine.pictures.decoder import PictureDecoder
from engine.pictures.limits import MAX_IMAGE_BYTES
from engine.types import Events, GenerationRequest, Part, Work
from engine.types import Request as Asked

MAX_IMAGES: Final = 32
MAX_REQUEST_BYTES: Final = 64 << 20
"""All images of one request, as files."""
MAX_REQUEST_PIXELS: Final = 128 << 20
"""All images of one request: two of the largest, ten photographs, or sixty screens."""
MAX_HELD_BYTES: Final = 512 << 20
MAX_HELD_PIXELS: Final = 1 << 30
"""All images of all requests under way. A worker needs some ten seconds to decode as many."""
MAX_REDIRECTS: Final = 3
MAX_ADDRESS_CHARACTERS: Final = 8192
FETCH_TIMEOUT_SECONDS: Final = 20.0
FETCHES: Final = 4
"""Images of one request that are fetched at the same time."""
_PORTS: Final = {"http": 80, "https": 443}


class Pictures:
    """All images of requests under way, from when they are fetched until their requests end."""

    def __init__(self) -> None:
        self._decoder = PictureDecoder(children=2)
        self._bytes = self._pixels = 0

    async def parts(self, asked: Sequence[tuple[str, str]], deadline: float | None) -> list[Part]:
        """The images with these addresses, each with the name of its field. Raises `InvalidRequest` for images that cannot be
        taken, `Busy` when too many are under way, and `DeadlineExceeded`."""
        if len(asked) > MAX_IMAGES:
            raise InvalidRequest(f"{len(asked)} images; a request takes {MAX_IMAGES}", param="messages")
        if not asked:
            return []
        limit = asyncio.timeout(None if deadline is None else deadline - time.monotonic())
        held = _Held(self)
        try:
            async with limit:
                return await self._parts(asked, held)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise DeadlineExceeded("the images were not here by the request's deadline") from error
        finally:
            held.release()

    async def _parts(self, asked: Sequence[tuple[str, str]], held: _Held) -> list[Part]:
        loading, found = asyncio.Semaphore(FETCHES), list[Part]()

        async def load(url: str, param: str) -> bytes:
            async with loading:
                data = await load_image(url, param)
                held.add_bytes(len(data))
                return data

        tasks = [asyncio.create_task(load(url, param)) for url, param in asked]
        try:
            for task, (_, param) in zip(tasks, asked, strict=True):
                data = await task
                width, height = await self._decoder.measure(data, param)
                held.add_pixels(width * height)
                found.append(Part("image", image=data, pixels=width * height, param=param))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return found

    def counting(self, work: Work) -> Work:
        """The same work; the images of a request are under way until it ends."""
        return _Counting(self, work)

    def hold(self, count: int, pixels: int) -> None:
        """Raises `Busy`."""
        if self._bytes + count > MAX_HELD_BYTES or self._pixels + pixels > MAX_HELD_PIXELS:
            raise Busy("the images of the requests under way are as many as this engine holds; try again soon")
        self._bytes += count
        self._pixels += pixels

    def release(self, count: int, pixels: int) -> None:
        self._bytes -= count
        self._pixels -= pixels

    async def close(self) -> None:
        await self._decoder.close()


class _Held:
    """The images of one request while they are gathered."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures
        self._bytes = self._pixels = 0

    def add_bytes(self, count: int) -> None:
        if self._bytes + count > MAX_REQUEST_BYTES:
            raise PayloadTooLarge(
                f"the images of a request have at most {MAX_REQUEST_BYTES} bytes together", param="messages"
            )
        self._pictures.hold(count, 0)
        self._bytes += count

    def add_pixels(self, count: int) -> None:
        if self._pixels + count > MAX_REQUEST_PIXELS:
            raise InvalidRequest(
                f"the images of a request have at most {MAX_REQUEST_PIXELS} pixels together: "
                "send fewer, or scale them down",
                param="messages",
            )
        self._pictures.hold(0, count)
        self._pixels += count

    def release(self) -> None:
        self._pictures.release(self._bytes, self._pixels)


class _Counting:
    """`Work` that holds the images of each request. Each of `n` answers holds them anew, as each has a copy in the worker."""

    def __init__(self, pictures: Pictures, work: Work) -> None:
        self._pictures, self._work = pictures, work

    def run(self, request: Asked) -> Events:
        if isinstance(request, GenerationRequest):
            images = [part for message in request.messages for part in message.parts if part.type == "image"]
            if images:
                return self._run(request, sum(len(one.image) for one in images), sum(one.pixels for one in images))
        return self._work.run(request)

    async def _run(self, request: Asked, count: int, pixels: int) -> Events:
        self._pictures.hold(count, pixels)
        events = self._work.run(request)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()
            self._pictures.release(count, pixels)


def _pictures(request: Request) -> Pictures:
    pictures: Pictures = request.app.state.pictures
    return pictures


PicturesDep = Annotated[Pictures, Depends(_pictures)]


async def load_image(url: str, param: str) -> bytes:
    """The bytes of an image. Raises `InvalidRequest` naming `param`."""
    # Not by urlsplit, which keeps its argument in a cache: a data: URL is megabytes of private data.
    url = url.strip("".join(map(chr, range(33))))
    scheme = url[:8].partition(":")[0].lower()
    if scheme == "data":
        return await _data_url(url, param)
    if scheme in ("http", "https"):
        return await _fetch(url, param)
    raise InvalidRequest("an image URL is a data: URL or a public http(s) address", param=param)


async def _data_url(url: str, param: str) -> bytes:
    try:
        data = decoded(url) if len(url) < 1 << 16 else await asyncio.to_thread(decoded, url)
    except ValueError as error:
        raise InvalidRequest(str(error), param=param) from error
    if not data or len(data) > MAX_IMAGE_BYTES:
        raise InvalidRequest(f"an image has between 1 and {MAX_IMAGE_BYTES} bytes", param=param)
    return data


async def _fetch(url: str, param: str) -> bytes:
    """Every hop is resolved once and checked, and then reached at exactly the address that was checked."""
    if len(url) > MAX_ADDRESS_CHARACTERS:
        raise InvalidRequest(f"the image's address has more than {MAX_ADDRESS_CHARACTERS} characters", param=param)
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_SECONDS), httpx.AsyncClient(trust_env=False, timeout=10.0) as client:
            target = httpx.URL(url)
            for _ in range(MAX_REDIRECTS + 1):
                response = await client.send(await _request(client, target, param), stream=True)
                try:
                    if response.has_redirect_location:
                        target = target.join(response.headers["location"])
                        continue
                    return await _body(response, param)
                finally:
                    await response.aclose()
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
        raise InvalidRequest(f"the image could not be fetched: {type(error).__name__}", param=param) from error
    raise InvalidRequest("the image's address redirects too often", param=param)


async def _request(client: httpx.AsyncClient, target: httpx.URL, param: str) -> httpx.Request:
    host = target.raw_host.decode("ascii")
    if target.scheme not in _PORTS or not host or target.userinfo:
        raise InvalidRequest("the image's address is not a plain http(s) one", param=param)
    port = target.port or _PORTS[target.scheme]
    if target.port == 0 or port > 65535 or (port < 1024 and port not in _PORTS.values()):
        raise InvalidRequest(f"images are not fetched from port {target.port}", param=param)
    address = await _public_address(host, port, param)
    # Packed answers would be unpacked by the client before anybody could count.
    headers = {"Host": target.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"}
    return client.build_request(
        "GET", target.copy_with(host=address), headers=headers, extensions={"sni_hostname": host}
    )


async def _body(response: httpx.Response, param: str) -> bytes:
    """The bytes as they come over the wire."""
    if response.status_code != 200:
        raise InvalidRequest(f"the image's address answered {response.status_code}", param=param)
    if (packed := response.headers.get("content-encoding", "identity").strip().lower()) not in ("", "identity"):
        raise InvalidRequest(f"the image's address answers with Content-Encoding {packed[:64]!r}", param=param)
    length = response.headers.get("content-length", "")
    data = bytearray()
    if not (length.isdecimal() and int(length) > MAX_IMAGE_BYTES):
        async for piece in response.aiter_raw():
            data += piece
            if len(data) > MAX_IMAGE_BYTES:
                break
        else:
            if not data:
                raise InvalidRequest("the image's address answers with nothing", param=param)
            return bytes(data)
    raise InvalidRequest(f"the image is larger than {MAX_IMAGE_BYTES} bytes", param=param)


async def _public_address(host: str, port: int, param: str) -> str:
    """An address of `host` on the public internet. A host is refused if one of its addresses is private."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InvalidRequest(f"the image's host {host[:255]!r} cannot be resolved", param=param) from error
    addresses = [str(item[4][0]) for item in found]
    if not addresses or any(not is_public(address) for address in addresses):
        raise InvalidRequest("the image's address is on this machine or in a private network", param=param)
    return addresses[0]
