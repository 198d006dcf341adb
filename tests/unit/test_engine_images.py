"""Which addresses and data: URLs are images, and what goes with an image."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest

from duet.errors import InvalidRequest
from engine.api.dialects.chat.requests import with_ocr_prompt
from engine.api.shared.addresses import is_public
from engine.api.shared.data_urls import decoded
from engine.api.shared.pictures import load_image
from engine.types import Message, Part

PRIVATE = [
    "127.0.0.1", "127.255.255.254", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.127.255.255", "0.0.0.0", "0.1.2.3", "192.0.0.1", "192.0.0.8", "192.0.0.9", "192.0.2.1",
    "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1",
    "255.255.255.255", "168.63.129.16", "::", "::1", "fe80::1", "fe80::1%lo", "febf::1", "fec0::1", "feff::1",
    "fc00::1", "fd00:ec2::254", "ff02::1", "ff0e::1", "100::1", "2001:db8::1", "3fff::1", "5f00::1", "4000::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1", "::ffff:0:7f00:1", "::7f00:1", "::127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b:1::7f00:1", "64:ff9b:1::101:101", "2002:7f00:1::", "2002:a00:1::",
    "2002:a9fe:a9fe::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1",
    "2a00::5efe:7f00:1", "2a00::5efe:10.0.0.1", "2a00::200:5efe:192.168.0.1", "fe80::5efe:1.1.1.1",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "169.253.0.1",
    "192.0.1.1", "223.255.255.255", "198.17.255.255", "2606:4700:4700::1111", "2a00:1450:4001:831::200e",
    "64:ff9b::101:101", "::ffff:1.1.1.1", "2002:101:101::1", "2a00::5efe:1.1.1.1", "2001:4860:4860::8888",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_never_fetched(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_on_the_public_internet(address: str) -> None:
    assert is_public(address)


# Data URLs -----------------------------------------------------------------------------------------------------------

HELLO = "aGVsbG8="
BYTES = b"\xfb\xff\xfe>?\x00"
PLUS = base64.b64encode(BYTES).decode()


@pytest.mark.parametrize(
    ("url", "data"),
    [
        (f"data:image/png;base64,{HELLO}", b"hello"), (f"DATA:image/png;base64,{HELLO}", b"hello"),
        (f"data:;base64,{HELLO}", b"hello"), (f"data:image/jpg;base64,{HELLO}", b"hello"),
        (f"data:image/png;BASE64,{HELLO}", b"hello"), (f"data:image/png; base64,{HELLO}", b"hello"),
        (f"data:image/png;base64 ,{HELLO}", b"hello"), (f"data:image/png;charset=utf-8;base64,{HELLO}", b"hello"),
        (f"data:image/png;name=a.png;base64,{HELLO}", b"hello"), (f"data:text/plain;base64,{HELLO}", b"hello"),
        (f"data:base64;base64,{HELLO}", b"hello"), (f" \n data:image/png;base64,{HELLO}\n", b"hello"),
        ("data:image/png;base64,aGVsbG8", b"hello"), ("data:image/png;base64,aGVs\r\nbG8=\r\n", b"hello"),
        ("data:image/png;base64,aGVs bG8 =", b"hello"), ("data:image/png;base64,\taGVsbG8=\f", b"hello"),
        ("data:image/png;base64,aGVsbG8%3D", b"hello"), ("data:image/png;base64,aGVs%0D%0AbG8%3d", b"hello"),
        ("data:image/png;base64,aGVsbG8=#fragment", b"hello"), ("data:image/png;base64,aGVsbG8====", b"hello"),
        (f"data:image/png;base64,{quote(PLUS, safe='')}", BYTES), (f"data:;base64,{PLUS}", BYTES),
        (f"data:;base64,{PLUS.replace('+', '-').replace('/', '_')}", BYTES),
        (f"data:image/png;\nbase64,{HELLO}", b"hello"), ("data:,hello", b"hello"), ("data:text/plain,hell%6F", b"hello"),
        ("data:image/png,%89PNG%0d", b"\x89PNG\r"), ("data:image/png;base64x,aGVs", b"aGVs"),
        ("data:image/svg+xml;utf8,<svg/>", b"<svg/>"), ("data:,é", "é".encode()), ("data:,a,b", b"a,b"),
    ],
)  # fmt: skip
async def test_data_urls_are_read_as_browsers_read_them(url: str, data: bytes) -> None:
    assert await load_image(url, "image") == data


@pytest.mark.parametrize(
    "url",
    [
        "data:", "data:image/png;base64", "data:;base64,", "data:,", "data:;base64,@@@", "data:;base64,aGVsb", "data:;base64,a",
        "data:;base64,aGVs=bG8=", "data:;base64,é", "data:;base64,\ud800", "data:#,aGVs", "data:;base64,=", "data",
        "file:///etc/passwd", "/etc/passwd", "ftp://example.org/x", "", "x", "blob:1", "\ud800",
        "//example.org/x", "javascript:1",
    ],
)  # fmt: skip
async def test_what_is_no_image_s_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await load_image(url, "image")
    assert refused.value.param == "image"


def test_base64_of_several_slices() -> None:
    data = bytes(range(256)) * 9000
    for text in (
        base64.b64encode(data).decode(),
        base64.encodebytes(data).decode(),
        base64.b64encode(data).decode().rstrip("="),
    ):
        assert decoded("data:;base64," + text) == data


async def test_a_data_url_of_more_than_twenty_megabytes_is_refused() -> None:
    url = "data:;base64," + base64.b64encode(b"x" * ((20 << 20) + 1)).decode()
    with pytest.raises(InvalidRequest) as refused:
        await load_image(url, "image")
    assert refused.value.param == "image"


def test_an_image_without_words_is_read_by_the_words_of_its_model() -> None:
    image = Part("image", image=b"x")
    [message] = with_ocr_prompt((Message("user", (image,)),), "OCR:")
    assert message.parts == (image, Part("text", text="OCR:"))


def test_words_of_the_user_are_left_alone() -> None:
    asked = (Message("user", (Part("text", text="Only the table."), Part("image", image=b"x"))),)
    assert with_ocr_prompt(asked, "OCR:") == asked
    assert with_ocr_prompt((Message("user", (Part("image", image=b"x"),)),), None)[0].parts == (
        Part("image", image=b"x"),
    )
