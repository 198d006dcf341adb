"""Images as bytes: which are taken, which are refused and how, and what reaches the model."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from PIL import Image

from duet.errors import InvalidRequest
from engine.types import Failed, Finished
from engine.worker.runtime.families.vision import MAX_IMAGE_PIXELS, open_image
from engine.worker.runtime.loader import Loaded
from tests.mlx.conftest import Driver, ask, picture


def encoded(size: tuple[int, int], mode: str = "RGB", form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "form"), [("RGB", "PNG"), ("RGBA", "WEBP"), ("P", "GIF"), ("CMYK", "JPEG"), ("LA", "PNG")]
)
def test_every_mode_and_format_becomes_rgb(mode: str, form: str) -> None:
    image = open_image(encoded((20, 10), mode, form))
    assert (image.mode, image.size) == ("RGB", (20, 10))


def test_a_turned_photograph_is_set_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    assert open_image(encoded((20, 10), form="JPEG", exif=exif)).size == (10, 20)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a readable"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a readable"),
        (encoded((8, 8), form="BMP"), "not a readable"),
        (picture(1)[:300], "not a readable"),
        (encoded((9000, 9000), "1"), "too large"),
        (encoded((12_000, 9_000), "1"), "too large"),
        (encoded((20_000, 20_000), "1"), "too large"),
    ],
    ids=["empty", "svg", "bmp", "cut", "81 Mpx", "108 Mpx", "400 Mpx"],
)
def test_other_bytes_and_huge_images_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        open_image(data)
    assert caught.value.param == "messages"


def test_the_largest_image_is_taken() -> None:
    assert open_image(encoded((8192, MAX_IMAGE_PIXELS // 8192), "1")).size == (8192, 8192)


@pytest.mark.parametrize("kind", ["vision", "hybrid"])
def test_an_image_that_the_processor_refuses_fails_its_request_by_name(model: Callable[..., Loaded], kind: str) -> None:
    driver = Driver(model(kind))
    driver.post(ask("thin", "x", images=(encoded((1, 3000)),)))
    driver.post(ask("fine", "x", images=(encoded((1, 1)),)))
    driver.drain()
    (failed,) = driver.of("thin", Failed)
    assert (failed.code, failed.param) == ("invalid_value", "messages")
    assert "aspect ratio" in failed.message
    assert driver.of("fine", Finished)


@pytest.mark.parametrize("kind", ["vision", "hybrid"])
def test_an_image_s_prefill_in_chunks_equals_it_whole(model: Callable[..., Loaded], kind: str) -> None:
    loaded = model(kind)
    request = ask("a", "which is larger", images=(picture(1, (160, 96)), picture(2, (64, 128))), tokens=30)
    whole = Driver(loaded, chunk_tokens=4096).run([request])
    assert [Driver(loaded, chunk_tokens=size).run([request]) for size in (3, 16)] == [whole, whole]
