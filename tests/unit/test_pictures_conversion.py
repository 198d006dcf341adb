"""What a model sees of a picture: the pixels that a browser shows on a white page."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from engine.pictures.conversion import converted
from engine.pictures.limits import MAX_IMAGE_PIXELS, MAX_SEEN_PIXELS, BadPicture
from engine.pictures.opening import opened

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
Pixels = list[tuple[int, int, int]]


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def row(mode: str, *pixels: Any) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


def seen(data: bytes) -> Pixels:
    image = converted(data)
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks: bytes, interlace: int = 0) -> bytes:
    """`rows` are the filtered rows as they stand in the file."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace)
    body = b"".join([chunk(b"IHDR", head), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])
    return b"\x89PNG\r\n\x1a\n" + body


def palette(*colours: tuple[int, int, int]) -> Image.Image:
    image = Image.new("P", (len(colours), 1))
    image.putpalette([value for colour in colours for value in colour])
    image.putdata(list(range(len(colours))))
    return image


HALF_RED = (255, 127, 127)
CLEAR_BLACK, HALF_OPAQUE_RED = (0, 0, 0, 0), (255, 0, 0, 128)


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        pytest.param(saved(row("RGBA", CLEAR_BLACK, HALF_OPAQUE_RED, (0, 0, 255, 255))), [WHITE, HALF_RED, BLUE], id="RGBA"),
        pytest.param(saved(row("RGBA", CLEAR_BLACK, (0, 0, 255, 255)), "WEBP", lossless=True, exact=True), [WHITE, BLUE],
                     id="WebP"),
        pytest.param(saved(row("RGBA", CLEAR_BLACK, CLEAR_BLACK), "AVIF"), [WHITE, WHITE], id="AVIF"),
        pytest.param(saved(row("RGBA", CLEAR_BLACK, (0, 0, 255, 255)), "TIFF"), [WHITE, BLUE], id="TIFF with alpha"),
        pytest.param(saved(row("LA", (0, 0), (0, 255), (100, 255))), [WHITE, BLACK, (100,) * 3], id="LA"),
        pytest.param(saved(row("L", 0, 7, 255), transparency=7), [BLACK, WHITE, WHITE], id="grey key"),
        pytest.param(saved(row("RGB", RED, BLACK), transparency=BLACK), [RED, WHITE], id="colour key"),
        pytest.param(saved(row("1", 0, 255)), [BLACK, WHITE], id="one bit"),
        pytest.param(saved(palette(BLACK, GREEN, BLUE), transparency=0), [WHITE, GREEN, BLUE], id="palette, one clear"),
        pytest.param(saved(palette(BLACK, RED, BLUE), transparency=b"\0\x80\xff"), [WHITE, HALF_RED, BLUE],
                     id="palette of alphas"),
        pytest.param(saved(palette(BLACK, GREEN, BLUE), "GIF", transparency=0), [WHITE, GREEN, BLUE], id="GIF"),
        pytest.param(saved(palette(BLACK, GREEN, BLUE)), [BLACK, GREEN, BLUE], id="palette"),
        pytest.param(saved(palette(BLACK, GREEN, BLUE), "BMP"), [BLACK, GREEN, BLUE], id="BMP"),
        pytest.param(png(4, 1, 2, 0, b"\0\x1b", chunk(b"tRNS", b"\0\1")), [BLACK, WHITE, (170,) * 3, WHITE],
                     id="2 bits, key 1 of 3"),
        pytest.param(png(2, 1, 4, 0, b"\0\x2f", chunk(b"tRNS", b"\0\2")), [WHITE, WHITE], id="4 bits, key 2 of 15"),
        pytest.param(png(2, 1, 1, 0, b"\0\x40", chunk(b"tRNS", b"\0\0")), [WHITE, WHITE], id="1 bit, key 0"),
        pytest.param(png(2, 1, 8, 2, b"\0\1\2\3\4\5\6", chunk(b"tRNS", b"\xff\1\xff\2\xff\3")), [WHITE, (4, 5, 6)],
                     id="key above its bits"),
        pytest.param(png(3, 1, 16, 0, b"\0\0\0\x80\0\xff\xff"), [BLACK, (128,) * 3, WHITE], id="16 bits grey"),
        pytest.param(png(2, 1, 16, 0, b"\0\0\1\0\2", chunk(b"tRNS", b"\0\1")), [WHITE, BLACK], id="16 bits grey, key"),
        pytest.param(png(2, 1, 16, 2, b"\0" + b"\xff\xff\0\0\x80\0" + b"\0\0\0\0\xff\xff"), [(255, 0, 128), BLUE],
                     id="16 bits RGB"),
        pytest.param(png(1, 1, 16, 2, b"\0\1\0\2\0\3\0", chunk(b"tRNS", b"\1\0\2\0\3\0")), [WHITE], id="16 bits RGB, key"),
        pytest.param(png(2, 1, 16, 6, b"\0" + b"\0" * 8 + b"\xff\xff\0\0\0\0\xff\xff"), [WHITE, RED], id="16 bits RGBA"),
        pytest.param(png(2, 1, 16, 4, b"\0" + b"\0" * 4 + b"\x40\0\xff\xff"), [WHITE, (64,) * 3],
                     id="16 bits grey with alpha"),
        pytest.param(saved(row("I;16", 0, 32896, 65535), "TIFF"), [BLACK, (128,) * 3, WHITE], id="16 bits TIFF"),
        pytest.param(saved(row("I", 0, 1 << 30, (1 << 31) - 1), "TIFF"), [BLACK, (128,) * 3, WHITE], id="32 bits"),
        pytest.param(saved(row("I", 0, 128, 255), "TIFF"), [BLACK, (128,) * 3, WHITE], id="8 bits in 32"),
        pytest.param(saved(row("I", 0, 32896, 65535), "TIFF"), [BLACK, (128,) * 3, WHITE], id="16 bits in 32"),
        pytest.param(saved(row("I", -100, 0, 100), "TIFF"), [BLACK, (128,) * 3, WHITE], id="whole numbers with a sign"),
        pytest.param(saved(row("F", 0.0, 0.5, 1.0), "TIFF"), [BLACK, (128,) * 3, WHITE], id="fractions"),
        pytest.param(saved(row("F", 0.0, 4.0, 8.0), "TIFF"), [BLACK, (128,) * 3, WHITE], id="fractions above one (HDR)"),
        pytest.param(saved(row("F", 0.25, 0.25), "TIFF"), [(64,) * 3] * 2, id="one fraction"),
        pytest.param(saved(row("F", float("nan"), float("inf")), "TIFF"), None, id="no numbers"),
        pytest.param(saved(row("CMYK", (0, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)), "TIFF"), [WHITE, RED, BLACK],
                     id="CMYK TIFF"),
        pytest.param(saved(row("LAB", (255, 128, 128), (0, 128, 128)), "TIFF"), [WHITE, BLACK], id="LAB"),
    ],
)  # fmt: skip
def test_every_mode_is_seen_as_on_a_white_page(data: bytes, pixels: Pixels | None) -> None:
    found = seen(data)
    if pixels is not None:
        assert np.abs(np.array(found) - np.array(pixels)).max() <= 1, (found, pixels)


@pytest.mark.parametrize(("colour", "cmyk"), [(WHITE, (0, 0, 0, 0)), (RED, (0, 255, 255, 0)), (BLACK, (0, 0, 0, 255))])
def test_the_inverted_cmyk_of_adobe_s_jpegs(colour: tuple[int, int, int], cmyk: tuple[int, ...]) -> None:
    found = seen(saved(Image.new("CMYK", (8, 8), cmyk), "JPEG", quality=100))
    assert np.abs(np.array(found) - np.array(colour)).max() <= 3


def interlaced(image: Image.Image) -> bytes:
    """An Adam7 PNG, which Pillow cannot write."""
    pixels, rows = np.asarray(image), b""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    for top, left, down, right in passes:
        for line in pixels[top::down, left::right]:
            rows += b"\0" + line.tobytes() if len(line) else b""
    return png(image.width, image.height, 8, 2, rows, interlace=1)


def noise(width: int, height: int, bands: int = 3) -> Image.Image:
    values = np.random.default_rng(3).integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.fromarray(values if bands > 1 else values[:, :, 0])


@pytest.mark.parametrize(
    "encode",
    [
        interlaced, saved, lambda image: saved(image, "BMP"), lambda image: saved(image, "TIFF", compression="tiff_lzw"),
        lambda image: saved(image, "TIFF", compression="tiff_deflate"), lambda image: saved(image, "WEBP", lossless=True),
        lambda image: saved(image, pnginfo=None, compress_level=0),
    ],
    ids=["interlaced PNG", "PNG", "BMP", "LZW TIFF", "deflate TIFF", "lossless WebP", "stored PNG"],
)  # fmt: skip
def test_a_lossless_picture_keeps_every_pixel(encode: Callable[[Image.Image], bytes]) -> None:
    image = noise(37, 23)
    assert converted(encode(image)).tobytes() == image.tobytes()


def test_one_picture_in_several_formats_has_one_and_the_same_pixels() -> None:
    image = noise(16, 9)
    assert len({converted(saved(image, form, **more)).tobytes() for form, more in FORMS}) == 1


FORMS: list[tuple[str, dict[str, Any]]] = [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]


# Orientation ---------------------------------------------------------------------------------------------------------

CORNERS = [[RED, GREEN, BLUE], [BLACK, WHITE, (9, 9, 9)]]


def photograph(orientation: Any, form: str = "PNG") -> bytes:
    """A picture of the corners as a camera stores it that notes `orientation`."""
    image = Image.fromarray(np.array(CORNERS, dtype=np.uint8))
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }.get(orientation)  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    more = {"lossless": True} if form == "WEBP" else {}
    return saved(image if stored is None else image.transpose(stored), form, exif=exif.tobytes(), **more)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_a_photograph_is_set_upright(orientation: int, form: str) -> None:
    assert np.asarray(converted(photograph(orientation, form))).tolist() == [
        [list(p) for p in line] for line in CORNERS
    ]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_turned_tiff_is_turned_once(orientation: int) -> None:
    turned = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}.get(
        orientation
    )
    image = Image.fromarray(np.array(CORNERS, dtype=np.uint8))
    data = saved(image if turned is None else image.transpose(turned), "TIFF", tiffinfo={0x0112: orientation})
    assert converted(data).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    "exif",
    [
        b"", b"Exif\0\0", b"Exif\0\0MM\0*", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 60,
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\2\0\0\0\4six\0\0\0\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\2\0\6\0\6\0\0\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\5\0\0\0\1\0\0\0\x1a\0\0\0\0\0\0\0\1\0\0\0\0", b"garbage", bytes(range(256)) * 200,
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\x03\xe7\0\0\0\0\0\0",
    ],
    ids=["none", "head", "cut", "far offset", "garbage directory", "text", "two values", "zero", "no TIFF", "huge", "999"],
)  # fmt: skip
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_odd_exif_never_makes_a_picture_unreadable(exif: bytes, form: str) -> None:
    assert converted(saved(Image.new("RGB", (8, 6), RED), form, exif=exif)).size in ((8, 6), (6, 8))


# Colour profiles -----------------------------------------------------------------------------------------------------


def lab_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def matrix_profile(gamma: float, swap: bool = False, space: bytes = b"RGB ") -> bytes:
    """A profile with sRGB's primaries, red and green exchanged on request, and one exponent for all channels."""
    curve = b"curv\0\0\0\0\0\0\0\1" + struct.pack(">H", round(gamma * 256)) + b"\0\0"
    red, green, blue = [
        b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in xyz)
        for xyz in ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7139))
    ]
    white = b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in (0.9642, 1.0, 0.8249))
    name = b"desc\0\0\0\0\0\0\0\5test\0" + b"\0" * 79
    tags = [(b"desc", name), (b"wtpt", white), (b"cprt", b"text\0\0\0\0none\0\0\0\0")]
    if space == b"GRAY":
        tags += [(b"kTRC", curve)]
    else:
        tags += [(b"rXYZ", green if swap else red), (b"gXYZ", red if swap else green), (b"bXYZ", blue)]
        tags += [(name_, curve) for name_ in (b"rTRC", b"gTRC", b"bTRC")]
    at, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name_, data in tags:
        data += b"\0" * (-len(data) % 4)
        table += name_ + struct.pack(">II", at + len(body), len(data))
        body += data
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", space, b"XYZ ") + struct.pack(
        ">6H", 2026, 1, 1, 0, 0, 0
    )
    head += b"acsp" + b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_colour_profile_is_followed(form: str) -> None:
    options = {"quality": 100} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    found = seen(saved(Image.new("RGB", (8, 8), RED), form, icc_profile=matrix_profile(2.2, swap=True), **options))
    assert np.abs(np.array(found) - np.array(GREEN)).max() <= 4


def test_a_profile_goes_with_transparency() -> None:
    data = saved(row("RGBA", CLEAR_BLACK, (255, 0, 0, 255)), icc_profile=matrix_profile(2.2, swap=True))
    assert np.abs(np.array(seen(data)) - np.array([WHITE, GREEN])).max() <= 2


def test_a_grey_profile_s_gamma_is_followed() -> None:
    [pixel] = seen(saved(row("L", 128), icc_profile=matrix_profile(1.0, space=b"GRAY")))
    assert abs(pixel[0] - 188) <= 2  # linear light of a half


@pytest.mark.parametrize(
    "profile",
    [
        b"", b"garbage", b"\0" * 200, matrix_profile(2.2)[:150], matrix_profile(2.2, space=b"GRAY"),
        lab_profile(), b"x" * (5 << 20),
    ],
    ids=["empty", "text", "zeros", "cut", "of greys", "of LAB", "huge"],
)  # fmt: skip
def test_a_broken_or_wrong_profile_counts_as_none(profile: bytes) -> None:
    assert seen(saved(row("RGB", (10, 200, 30)), icc_profile=profile)) == [(10, 200, 30)]


def test_srgb_s_own_profile_changes_no_pixel() -> None:
    image, profile = noise(64, 64), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert converted(saved(image, icc_profile=profile)).tobytes() == image.tobytes()


# Animations ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_seen(form: str) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in (RED, GREEN, BLUE)]
    more = {"lossless": True} if form == "WEBP" else {}
    assert set(seen(saved(frames[0], form, save_all=True, append_images=frames[1:], **more))) == {RED}


def gif(screen: tuple[int, int], at: tuple[int, int], *, transparent: int | None = None) -> bytes:
    """One frame of 1 x 1 of colour 1, which is blue; colour 0 is red."""
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + bytes(RED) + bytes(BLUE)
    if transparent is not None:
        head += b"\x21\xf9\4\1\0\0" + bytes([transparent]) + b"\0"
    return head + b"," + struct.pack("<HHHHB", *at, 1, 1, 0) + b"\2\2\x4c\1\0;"


@pytest.mark.parametrize(("transparent", "inside"), [(None, BLUE), (0, BLUE), (1, WHITE)])
def test_where_a_gif_s_first_frame_is_not_the_page_shows(transparent: int | None, inside: tuple[int, int, int]) -> None:
    pixels = np.asarray(converted(gif((3, 2), (1, 1), transparent=transparent)))
    assert pixels[1, 1].tolist() == list(inside)
    pixels = pixels.copy()
    pixels[1, 1] = 255
    assert (pixels == 255).all()


def test_the_standard_picture_of_a_gain_map_is_seen() -> None:
    """Phones append a second picture (MPO): that of the brightness beyond white."""
    frames = [Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)]
    [pixel] = set(seen(saved(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=100)))
    assert np.abs(np.array(pixel) - np.array(RED)).max() <= 2


# What is refused -----------------------------------------------------------------------------------------------------

PHOTOGRAPH = saved(noise(200, 160), "JPEG", quality=90)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF"])
def test_a_truncated_picture_is_said_to_be_so(form: str, share: float) -> None:
    data = saved(noise(200, 160), form)
    with pytest.raises(BadPicture, match=r"truncated|damaged|not a readable") as refused:
        converted(data[: int(len(data) * share)])
    if form in ("JPEG", "PNG", "BMP"):
        assert "truncated" in str(refused.value)


@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_only_its_last_marker_is_whole(bands: int, progressive: bool, missing: int) -> None:
    data = saved(noise(200, 160, bands), "JPEG", progressive=progressive)
    assert converted(data[:-missing]).tobytes() == converted(data).tobytes()


def test_a_dark_jpeg_that_is_cut_is_not_taken_for_whole() -> None:
    image = Image.new("L", (640, 640))
    image.paste(noise(640, 320, 1), (0, 320))
    with pytest.raises(BadPicture, match="truncated"):
        converted(saved(image, "JPEG")[:1000])


def test_a_png_that_lacks_only_its_last_chunk_is_whole() -> None:
    data = saved(noise(20, 16))
    assert converted(data[:-12]).tobytes() == noise(20, 16).tobytes()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a readable"), (b"hello", "not a readable"), (PHOTOGRAPH[:20], "not a readable"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"), (b"<?xml version='1.0'?>\n<svg width='1'/>", "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"), (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"), (b"\xff\x0a123", "JPEG XL"),
        (b"%PDF-1.7", "PDF"), (b"8BPS\0\1", "Photoshop"), (b"<!DOCTYPE html><html>", "web page"), (b"P6\n1 1\n255\nabc", "PPM"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a readable"), (saved(Image.new("1", (9000, 9000))), "too large"),
        (png(60000, 60000, 1, 0, b""), "too large"), (png((1 << 31) - 1, 1, 8, 0, b""), "too large"),
        (saved(Image.new("1", (3000, 1))), "aspect ratio"), (saved(Image.new("1", (1, 3000))), "aspect ratio"),
        (gif((65535, 65535), (0, 0)), "too large"), (png(0, 0, 8, 0, b""), "not a readable|no pixels"),
        (saved(Image.new("L", (2, 2)), "TIFF", save_all=True, append_images=[Image.new("L", (2, 2))]), "several pages"),
    ],
)  # fmt: skip
def test_what_is_refused_says_why(data: bytes, words: str) -> None:
    with pytest.raises(BadPicture, match=words):
        opened(data)


def test_what_is_accepted_is_named_with_what_is_refused() -> None:
    with pytest.raises(BadPicture, match="PNG, JPEG, WebP, GIF, BMP, TIFF and AVIF are taken"):
        opened(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


def test_the_making_of_a_picture_as_text_is_no_reason_to_refuse_it() -> None:
    text = chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"node " * (1 << 19)))
    assert seen(png(1, 1, 8, 0, b"\0\x07", text)) == [(7, 7, 7)]


@pytest.mark.cpu_seconds(10)  # the largest picture there may be
def test_a_huge_picture_is_scaled_down_to_what_models_look_at() -> None:
    width = 8192
    image = converted(saved(Image.new("1", (width, MAX_IMAGE_PIXELS // width), 1)))
    assert image.width * image.height <= MAX_SEEN_PIXELS
    assert image.size == (4096, 4096)
    assert image.getextrema() == ((255, 255),) * 3


def test_colours_of_clear_pixels_do_not_bleed_when_a_picture_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.pictures.conversion.MAX_SEEN_PIXELS", 16)
    image = row("RGBA", *[(255, 0, 0, 0), (0, 0, 255, 255)] * 8).resize((16, 16), Image.Resampling.NEAREST)
    red, green, blue = np.asarray(converted(saved(image))).reshape(-1, 3).astype(int).T
    assert (blue > 250).all(), "blue over white is never darker in blue"
    assert (red == green).all(), "no red"
