"""Where images may come from."""

from __future__ import annotations

import base64

import pytest

from duet.errors import InvalidRequest
from engine.api.dialects.chat.requests import with_ocr_prompt
from engine.api.shared.pictures import is_public, load_image
from engine.types import Message, Part


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "2002:7f00:1::", "64:ff9b::7f00:1", "::7f00:1", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_never_fetched(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_addresses_on_the_public_internet(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("url", ["data:image/png;base64,aGVsbG8=", "data:,hello", "DATA:text/plain,hell%6F"])
async def test_data_urls(url: str) -> None:
    assert await load_image(url, "image") == b"hello"


async def test_a_data_url_of_more_than_twenty_megabytes_is_refused() -> None:
    url = "data:;base64," + base64.b64encode(b"x" * ((20 << 20) + 1)).decode()
    with pytest.raises(InvalidRequest) as refused:
        await load_image(url, "image")
    assert refused.value.param == "image"


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "/etc/passwd", "ftp://example.org/x", "", "x", "blob:1", "\ud800"]
)
async def test_other_schemes_are_refused(url: str) -> None:
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
