"""Compressed bodies: opened as they come, bounded by what they hold, and refused by name."""

from __future__ import annotations

import gzip
import sys
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Body, FastAPI, File, Request
from hypothesis import given, settings
from hypothesis import strategies as st

from duet.http.edge import install_edge
from duet.http.encodings import MAX_MEMBERS
from duet.http.forms import FormRoute
from duet.http.json_bodies import JsonRoute
from duet.http.parts import Upload
from duet.http.spool import Spool

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LIMIT = 1 << 20


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def wide(data: bytes) -> bytes:
    """zstd that needs 128 MiB to be opened."""
    packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    return packer.compress(data) + packer.flush()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstd.compress,
}  # fmt: skip


def packed(data: bytes, *names: str) -> bytes:
    for name in names:
        data = PACK[name](data)
    return data


def make_app(folder: Path) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    install_edge(app, key="k", allowed_hosts=(), max_body_bytes=LIMIT)
    app.state.spool = Spool(folder, max_bytes=LIMIT)
    app.router.route_class = JsonRoute
    forms = APIRouter(route_class=FormRoute)

    @app.post("/size")
    async def size(request: Request) -> dict[str, Any]:
        body = await request.body()
        sent = {name for name in request.headers if name in ("content-encoding", "content-length")}
        return {"size": len(body), "sum": zlib.crc32(body), "headers": sorted(sent)}

    @app.post("/json")
    async def taken(body: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        return body

    @forms.post("/form")
    async def form(file: Annotated[Upload, File()]) -> int:
        return file.path.stat().st_size

    app.include_router(forms)
    return app


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(make_app(tmp_path / "tmp" / "router"))
    headers = {"Authorization": "Bearer k"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as found:
        yield found


async def send(
    client: httpx.AsyncClient, body: Any, encoding: str, path: str = "/size", **headers: str
) -> httpx.Response:
    return await client.post(path, content=body, headers={"Content-Encoding": encoding, **headers})


BODIES = [b"x", b"", b"hello" * 1000, bytes(range(256)) * 2000, b"\0" * LIMIT]


@pytest.mark.parametrize("body", BODIES, ids=len)
@pytest.mark.parametrize(
    "names",
    [["gzip"], ["x-gzip"], ["deflate"], ["zstd"], ["gzip", "zstd"], ["zstd", "deflate", "gzip"], ["gzip", "gzip"]],
    ids=str,
)
async def test_a_body_is_what_it_was_before_its_encodings(
    client: httpx.AsyncClient, body: bytes, names: list[str]
) -> None:
    found = packed(body, *names)

    async def slowly() -> AsyncIterator[bytes]:
        step = max(1, len(found) // 50)
        for i in range(0, len(found), step):
            yield found[i : i + step]

    for content in (found, slowly()):
        answer = await send(client, content, ", ".join(names))
        assert answer.json() == {"size": len(body), "sum": zlib.crc32(body), "headers": []}


@pytest.mark.parametrize("encoding", ["GZIP", " gzip ", "identity, gzip", "gzip,identity", ",gzip,"])
async def test_an_encodings_name_in_any_spelling(client: httpx.AsyncClient, encoding: str) -> None:
    assert (await send(client, gzip.compress(b"abc"), encoding)).json()["size"] == 3


@pytest.mark.parametrize("encoding", ["", "identity"])
async def test_no_encoding_is_one_too(client: httpx.AsyncClient, encoding: str) -> None:
    assert (await send(client, b"abc", encoding)).json() == {
        "size": 3,
        "sum": zlib.crc32(b"abc"),
        "headers": ["content-encoding", "content-length"],
    }


async def test_deflate_without_its_header_is_taken(client: httpx.AsyncClient) -> None:
    assert (await send(client, raw_deflate(b"abc" * 99), "deflate")).json()["size"] == 297


async def test_streams_that_are_joined_are_one_body(client: httpx.AsyncClient) -> None:
    for pack in (gzip.compress, zstd.compress):
        name = "gzip" if pack is gzip.compress else "zstd"
        assert (await send(client, pack(b"abc") + pack(b"") + pack(b"defg"), name)).json()["size"] == 7


async def test_an_empty_body_needs_no_stream(client: httpx.AsyncClient) -> None:
    assert (await send(client, b"", "gzip")).json()["size"] == 0


@pytest.mark.parametrize("encoding", ["br", "compress", "lz4", "gzip, br", "gzip;q=1", "g\x00zip", "*", "aws-chunked"])
async def test_an_encoding_that_is_not_known_is_named(client: httpx.AsyncClient, encoding: str) -> None:
    answer = await send(client, b"abc", encoding)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (415, "unsupported_encoding", "Content-Encoding")
    assert answer.headers["Accept-Encoding"] == "gzip, deflate, zstd"
    assert "gzip, deflate, zstd" in error["message"]


async def test_too_many_layers_and_members_are_refused(client: httpx.AsyncClient) -> None:
    assert (await send(client, packed(b"abc", *["gzip"] * 4), "gzip, gzip, gzip, gzip")).status_code == 415
    assert (await send(client, zstd.compress(b"") * (MAX_MEMBERS + 1), "zstd")).status_code == 400


BROKEN: list[tuple[str, bytes, str]] = [
    ("json", b'{"a": 1}', "gzip"), ("json", b'{"a": 1}', "deflate"), ("json", b'{"a": 1}', "zstd"), ("one byte", b"\x1f", "gzip"),
    ("another one", gzip.compress(b"abc"), "zstd"), ("the other way round", packed(b"abc", "gzip", "zstd"), "zstd, gzip"),
    ("cut", gzip.compress(b"abc" * 9999)[:-1], "gzip"), ("cut", zlib.compress(b"abc" * 9999)[:-1], "deflate"),
    ("cut", zstd.compress(b"abc" * 9999)[:-1], "zstd"), ("header alone", gzip.compress(b"abc")[:10], "gzip"),
    ("cut within", packed(zlib.compress(b"abc" * 99)[:-1], "gzip"), "deflate, gzip"),
    ("wrong sum", gzip.compress(b"abc")[:-8] + b"\0" * 8, "gzip"), ("more behind", gzip.compress(b"abc") + b"{}", "gzip"),
    ("more behind", zlib.compress(b"abc") + b"{}", "deflate"), ("large window", wide(b"x" * 100), "zstd"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "encoding"), [case[1:] for case in BROKEN], ids=[f"{c[0]} {c[2]}" for c in BROKEN])
async def test_what_is_not_encoded_as_it_says_is_refused(client: httpx.AsyncClient, body: bytes, encoding: str) -> None:
    for path in ("/size", "/json"):
        answer = await send(client, body, encoding, path)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "Content-Encoding"), (path, answer.text)
        assert any(name in error["message"] for name in encoding.split(", "))


BOMBS = [["gzip"], ["deflate"], ["zstd"], ["gzip", "gzip"], ["zstd", "zstd", "zstd"], ["gzip", "zstd"]]


@pytest.mark.parametrize("names", BOMBS, ids=str)
async def test_a_bomb_is_refused_before_it_is_large(client: httpx.AsyncClient, names: list[str]) -> None:
    zeros = b"\0" * (32 << 20)
    form = client.build_request("POST", "/form", files={"file": ("a", zeros)})
    kind = {"Content-Type": form.headers["content-type"]}
    sent = [
        ("/size", packed(zeros, *names), {}),
        ("/json", packed(zeros, *names), {}),
        ("/form", packed(form.read(), *names), kind),
    ]
    del form, zeros
    tracemalloc.start()
    try:
        for path, body, headers in sent:
            assert len(body) < LIMIT
            answer = await send(client, body, ", ".join(names), path, **headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "payload_too_large")
        assert tracemalloc.get_traced_memory()[1] < 8 * LIMIT
    finally:
        tracemalloc.stop()


async def test_one_byte_too_much_is_too_much(client: httpx.AsyncClient) -> None:
    assert (await send(client, gzip.compress(b"x" * LIMIT), "gzip")).status_code == 200
    assert (await send(client, gzip.compress(b"x" * (LIMIT + 1)), "gzip")).status_code == 413


async def test_json_and_forms_come_compressed_too(client: httpx.AsyncClient) -> None:
    assert (await send(client, zstd.compress(b'{"a": 1}'), "zstd", "/json")).json() == {"a": 1}
    form = client.build_request("POST", "/form", files={"file": ("a", b"x" * 100_000)})
    kind = {"Content-Type": form.headers["content-type"]}
    assert (await send(client, gzip.compress(form.read()), "gzip", "/form", **kind)).json() == 100_000


@given(
    st.binary(max_size=200), st.lists(st.sampled_from(["gzip", "deflate", "zstd"]), min_size=1, max_size=3), st.data()
)
@settings(max_examples=60)
async def test_a_damaged_body_is_never_a_fault_of_ours(body: bytes, names: list[str], data: st.DataObject) -> None:
    damaged = bytearray(packed(body, *names))
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    sent = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    transport = httpx.ASGITransport(make_app(Path("/nowhere")))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers={"Authorization": "Bearer k"}
    ) as client:
        answer = await send(client, sent, ", ".join(names))
    assert answer.status_code in (200, 400, 413)
    if sent == packed(body, *names):
        assert answer.json()["size"] == len(body)
