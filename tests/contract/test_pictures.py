"""Images of requests: fetched, measured and bounded, with real children and real sockets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import os
import random
import signal
import time
import zlib
from collections.abc import AsyncIterator, Callable

import pytest
from PIL import Image

from duet.errors import Busy, DeadlineExceeded, InvalidRequest
from engine.api.shared import pictures
from engine.api.shared.pictures import Pictures, load_image
from engine.pictures.decoder import PictureDecoder
from engine.types import Events, GenerationRequest, Message, Request

# Fetching ------------------------------------------------------------------------------------------------------------

Answer = Callable[[str], bytes]


@contextlib.asynccontextmanager
async def site(answer: Answer) -> AsyncIterator[tuple[int, list[str]]]:
    """A server on loopback that sends `answer(path)`: its port, and the heads of the requests that it gets."""
    heads: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            heads.append(head)
            writer.write(answer(head.split()[1]))
            await writer.drain()
            if not head.startswith("GET /slow"):
                writer.close()
            await over.wait()
        writer.close()

    over = asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1], heads
        over.set()


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hosts that were resolved. Those that begin with `public` are on loopback, and count as public."""
    asked: list[str] = []
    real = pictures._public_address

    async def resolve(host: str, port: int, param: str) -> str:
        asked.append(host)
        return "127.0.0.1" if host.startswith("public") else await real(host, port, param)

    monkeypatch.setattr(pictures, "_public_address", resolve)
    return asked


async def test_an_image_is_fetched_unpacked_and_from_the_address_that_was_checked(resolved: list[str]) -> None:
    async with site(lambda _: ok(b"hello")) as (port, heads):
        assert await load_image(f"http://public.example:{port}/a?b=c", "image") == b"hello"
    assert resolved == ["public.example"]
    head = heads[0].lower()
    assert head.startswith("get /a?b=c http/1.1")
    assert f"host: public.example:{port}\r\n" in head
    assert "accept-encoding: identity\r\n" in head


def packed(times: int) -> bytes:
    data = b"\0" * (64 << 20)
    for _ in range(times):
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        data = packer.compress(data) + packer.flush()
    return data


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "deflate", "br", "zstd", "x-unknown", "GZIP"])
async def test_packed_answers_are_refused_before_they_are_unpacked(resolved: list[str], encoding: str) -> None:
    async with site(lambda _: ok(packed(2), f"Content-Encoding: {encoding}")) as (port, _):
        with pytest.raises(InvalidRequest, match="Content-Encoding"):
            await load_image(f"http://public.example:{port}/", "image")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404"),
        (ok(b""), "with nothing"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nx", "larger than"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * ((20 << 20) + 1), "larger than"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx", "could not be fetched"),
        (b"nonsense\r\n\r\n", "could not be fetched"),
        (b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 20000 + b"\r\n", "could not be fetched"),
        (b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n", "redirects too often"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n", "private network"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://2130706433/\r\nContent-Length: 0\r\n\r\n", "private network"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[::ffff:0:7f00:1]/\r\nContent-Length: 0\r\n\r\n", "private network"),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n", "plain http"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://a:b@public.example/\r\nContent-Length: 0\r\n\r\n", "plain http"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://public.example:22/\r\nContent-Length: 0\r\n\r\n", "port 22"),
    ],
)  # fmt: skip
async def test_answers_that_are_not_taken(resolved: list[str], answer: bytes, words: str) -> None:
    async with site(lambda _: answer) as (port, _):
        with pytest.raises(InvalidRequest, match=words) as refused:
            await load_image(f"http://public.example:{port}/", "image")
    assert refused.value.param == "image"


async def test_a_slow_answer_is_given_up(resolved: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "FETCH_TIMEOUT_SECONDS", 0.2)
    async with site(lambda _: b"HTTP/1.1 200 OK\r\n") as (port, _):
        began = time.monotonic()
        with pytest.raises(InvalidRequest, match="could not be fetched"):
            await load_image(f"http://public.example:{port}/slow", "image")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "LOCALHOST", "localhost.", "127.1", "127.0.1", "2130706433", "0x7f000001",
        "0x7f.1", "0177.0.0.1",
        "017700000001", "0.0.0.0", "0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[64:ff9b:1::7f00:1]",
        "[::ffff:0:7f00:1]", "[fec0::1]",
        "127.0.0.1.", "①②⑦.0.0.1", "127。0。0。1", "169.254.169.254", "192.0.0.8", "[fe80::1%25lo]", "[::1", "[v1.x]", "a..b",
        "a" * 300, "", "\0", "user@127.0.0.1", "public@127.0.0.1", "127.0.0.1\\@public.example", "a b", "%31%32%37.0.0.1",
    ],
)  # fmt: skip
async def test_hosts_of_this_machine_are_refused_however_they_are_spelled(host: str) -> None:
    async with site(lambda _: ok(b"secret")) as (port, heads):
        with pytest.raises(InvalidRequest) as refused:
            await load_image(f"http://{host}:{port}/", "image")
    assert refused.value.param == "image"
    assert not heads


@pytest.mark.parametrize("port", ["0", "22", "25", "99999", "-1", "x"])
async def test_ports_of_other_services_are_refused(resolved: list[str], port: str) -> None:
    with pytest.raises(InvalidRequest):
        await load_image(f"http://public.example:{port}/", "image")


# All images of a request, and of all requests ------------------------------------------------------------------------


def encoded(size: tuple[int, int], mode: str = "1") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


SMALL, BIG = url(encoded((20, 10))), url(encoded((8000, 8000)))


@pytest.fixture
async def gathered() -> AsyncIterator[Pictures]:
    pictures = Pictures()
    yield pictures
    await pictures.close()


async def test_images_come_in_their_order_with_their_sizes_and_names(gathered: Pictures) -> None:
    asked = [(url(encoded((size, 10))), f"image[{size}]") for size in range(1, 33)]
    parts = await gathered.parts(asked, None)
    assert [(part.pixels, part.param) for part in parts] == [(10 * size, f"image[{size}]") for size in range(1, 33)]
    assert await gathered.parts([], None) == []


@pytest.mark.parametrize(
    ("asked", "words", "param"),
    [
        ([SMALL, url(b"hello")], "not a readable", "i[1]"), ([url(encoded((9000, 9000)))], "too large", "i[0]"),
        ([SMALL, "data:,x"], "not a readable", "i[1]"), ([url(encoded((3000, 1)))], "aspect ratio", "i[0]"),
        ([SMALL] * 33, "33 images; a request takes 32", "messages"), ([BIG] * 32, "pixels together", "messages"),
        ([SMALL, BIG, BIG, BIG], "pixels together", "messages"),
    ],
)  # fmt: skip
async def test_images_that_cannot_be_taken_are_named_at_once(
    gathered: Pictures, asked: list[str], words: str, param: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        await gathered.parts([(one, f"i[{i}]") for i, one in enumerate(asked)], None)
    assert refused.value.param == param


async def test_the_files_of_a_request_are_bounded_together(gathered: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_REQUEST_BYTES", 3 * len(encoded((20, 10))))
    assert len(await gathered.parts([(SMALL, "i")] * 3, None)) == 3
    with pytest.raises(InvalidRequest, match="bytes together") as refused:
        await gathered.parts([(SMALL, "i")] * 4, None)
    assert (refused.value.status, refused.value.param) == (413, "messages")


class Waiting:
    """Work that ends when it is told."""

    def __init__(self) -> None:
        self.end = asyncio.Event()

    async def run(self, request: Request) -> Events:
        await self.end.wait()
        return
        yield


async def drained(events: Events) -> None:
    async for _ in events:
        pass


@pytest.mark.parametrize("end", ["answered", "cancelled"])
async def test_images_of_all_requests_under_way_are_bounded(
    gathered: Pictures, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(pictures, "MAX_HELD_PIXELS", 500)
    work = Waiting()
    counting = gathered.counting(work)
    parts = await gathered.parts([(SMALL, "i")], None)
    request = GenerationRequest(id="a", model="m", messages=(Message("user", tuple(parts)),))
    running = [asyncio.create_task(drained(counting.run(request))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await gathered.parts([(SMALL, "i")], None)
    with pytest.raises(Busy):
        await drained(counting.run(request))
    if end == "answered":
        work.end.set()
    for task in running:
        if end == "cancelled":
            task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    work.end.set()
    assert len(await gathered.parts([(SMALL, "i")] * 2, None)) == 2
    await drained(counting.run(request))


async def test_images_are_given_up_at_the_request_s_deadline(resolved: list[str], gathered: Pictures) -> None:
    async with site(lambda _: b"HTTP/1.1 200 OK\r\n") as (port, _):
        with pytest.raises(DeadlineExceeded):
            await gathered.parts([(f"http://public.example:{port}/slow", "i")], time.monotonic() + 0.2)


# A child that a picture ends -----------------------------------------------------------------------------------------


async def test_a_child_that_is_killed_from_outside_costs_no_request(gathered: Pictures) -> None:
    decoder = gathered._decoder
    await asyncio.gather(*(decoder.measure(encoded((20, 10)), "i") for _ in range(2)))
    children = {child.pid for child in decoder._children._free}
    slow = asyncio.create_task(decoder.decode(encoded((8000, 8000)), "i[0]"))
    other = asyncio.create_task(decoder.decode(encoded((8, 4)), "i[1]"))
    assert len((await other).rgb) == 8 * 4 * 3
    [busy] = children - {child.pid for child in decoder._children._free}
    assert busy is not None
    os.kill(busy, signal.SIGKILL)
    assert (await slow).width == 4096
    assert await decoder.measure(encoded((20, 10)), "i") == (20, 10)


async def test_a_picture_that_takes_too_long_is_given_up(gathered: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.pictures.decoder.DECODE_SECONDS", 0.05)
    with pytest.raises(InvalidRequest, match=r"within 0\.05 s"):
        await gathered._decoder.decode(encoded((8000, 8000)), "i")
    monkeypatch.undo()
    assert (await gathered._decoder.decode(encoded((8, 4)), "i")).width == 8


async def test_a_picture_that_ends_its_child_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.pictures.decoder.CHILD", "tests.fakes.picture_child")
    decoder = PictureDecoder(children=2)
    deaths = {b"abort": "ended the process", b"memory": "1536 MB of memory"}
    try:
        bad = [
            (asyncio.create_task(decoder.decode(data, f"i[{i}]")), i, words)
            for i, (data, words) in enumerate(deaths.items())
        ]
        good = [asyncio.create_task(decoder.decode(b"fine", "i")) for _ in range(6)]
        assert [(await one).rgb for one in good] == [b"rgb"] * 6
        for task, i, words in bad:
            with pytest.raises(InvalidRequest, match=words) as refused:
                await task
            assert refused.value.param == f"i[{i}]"
        began = time.monotonic()
        assert (await decoder.decode(b"fine", "i")).rgb == b"rgb"
        assert time.monotonic() - began < 5, "files that end children are no reason to wait"
    finally:
        await decoder.close()


async def test_a_picture_may_take_only_so_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.pictures.decoder.MEMORY_BYTES", 150 << 20)
    decoder = PictureDecoder(children=1)
    try:
        with pytest.raises(InvalidRequest, match="memory") as refused:
            await decoder.decode(encoded((8000, 8000), "RGB"), "i")
        assert refused.value.param == "i"
        assert (await decoder.decode(encoded((8, 4)), "i")).width == 8
    finally:
        await decoder.close()


async def test_idle_children_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.pictures.decoder.IDLE_SECONDS", 0.2)
    decoder = PictureDecoder(children=2)
    await decoder.measure(encoded((8, 4)), "i")
    children = list(decoder._children._free)  # one that ends is taken out meanwhile
    [pid] = [child.pid for child in children if child.pid is not None]
    while any(child.pid is not None for child in children):
        await asyncio.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert await decoder.measure(encoded((8, 4)), "i") == (8, 4)
    await decoder.close()


def mutated(seeds: list[bytes], count: int) -> list[bytes]:
    """Pictures with changed, missing and repeated bytes, most of them in their heads."""
    rng, found = random.Random(7), []
    for i in range(count):
        data = bytearray(seeds[i % len(seeds)])
        for _ in range(rng.choice([1, 1, 2, 4, 16])):
            at = rng.randrange(min(len(data), rng.choice([64, 256, len(data)])))
            match rng.randrange(5):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    data[at : at + 4] = rng.choice(
                        [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]
                    )
                case 2:
                    del data[at : at + rng.randrange(1, 9)]
                case 3:
                    data[at:at] = rng.randbytes(rng.randrange(1, 9))
                case 4 if len(data) > 8:
                    del data[rng.randrange(8, len(data)) :]
        found.append(bytes(data))
    return found


async def test_damaged_pictures_are_pixels_or_refused_and_the_log_stays_quiet(
    capfd: pytest.CaptureFixture[str],
) -> None:
    image = Image.effect_noise((48, 32), 90)
    seeds = []
    for mode, form, more in [
        ("RGB", "PNG", {}), ("RGB", "JPEG", {}), ("CMYK", "JPEG", {"progressive": True}), ("RGBA", "WEBP", {}), ("P", "GIF", {}),
        ("RGB", "WEBP", {"lossless": True}), ("L", "BMP", {}), ("RGB", "TIFF", {"compression": "tiff_lzw"}), ("RGBA", "AVIF", {}),
        ("1", "TIFF", {"compression": "group4"}), ("RGB", "TIFF", {"compression": "jpeg"}), ("RGB", "TIFF", {}),
    ]:  # fmt: skip
        buffer = io.BytesIO()
        image.convert(mode).save(buffer, form, **more)
        seeds.append(buffer.getvalue())
    decoder, ends = PictureDecoder(children=1), {"pixels": 0, "refused": 0}
    try:
        for data in mutated(seeds, 600):
            try:
                assert (await decoder.decode(data, "i")).rgb
                ends["pixels"] += 1
            except InvalidRequest as refused:
                assert refused.param == "i"
                ends["refused"] += 1
    finally:
        await decoder.close()
    assert min(ends.values()) > 100
    assert not capfd.readouterr().err
