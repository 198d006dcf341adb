"""Bytes become an opened picture of a format that is taken, without its pixels. Only the child imports this."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any, Final

from PIL import Image, PngImagePlugin

from engine.pictures.limits import BadPicture, check_size

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
TAKEN: Final = "PNG, JPEG, WebP, GIF, BMP, TIFF and AVIF are taken"
_OTHERS: Final = (
    ("HEIC", rb"(?s)....ftyp(?:heic|heix|hevc|hevx|heim|heis|mif1|msf1)"),
    ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("JPEG 2000", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    ("SVG", rb"(?s)\s*(?:<\?xml.*?|<!--.*?-->\s*|<!DOCTYPE svg.*?)?<svg[\s>]"),
    ("PDF", rb"%PDF-"),
    ("icon", rb"\0\0[\1\2]\0"),
    ("Photoshop", rb"8BPS"),
    ("PPM", rb"P[1-7]\s"),
    ("web page", rb"(?i)\s*<(?:!doctype html|html)"),
)
_FILLERS: Final = (bytes(range(1, 65)), bytes(range(200, 136, -1)))
_SUBFILE_TYPE, _REDUCED, _MASK = 254, 1, 4

# Many pictures carry their making as text (prompts and workflows of image generators). It is skipped, and the picture's own
# size bounds it; Pillow's bound of a megabyte would refuse the picture.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
# Our own bound on pixels comes first, and has a sentence for the user.
Image.MAX_IMAGE_PIXELS = None


def opened(data: bytes) -> Image.Image:
    """Raises `BadPicture` for other formats, for what cannot be read, and for sizes that are not taken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            pages = _pages(image) if image.format == "TIFF" else 1
    except Exception as error:
        raise BadPicture(_what_it_is(data)) from error
    check_size(image.width, image.height)
    if pages > 1:
        raise BadPicture("this TIFF has several pages: send each page as a picture of its own")
    return image


def _pages(image: Any) -> int:
    """1 or 2, for any number. Thumbnails and masks are no pages."""
    pages = 0
    for index in range(8):
        try:
            image.seek(index)
        except EOFError:
            break
        kind = image.tag_v2.get(_SUBFILE_TYPE, 0)
        pages += not (isinstance(kind, int) and kind & (_REDUCED | _MASK))
        if pages > 1:
            break
    image.seek(0)
    return max(1, pages)


def _what_it_is(data: bytes) -> str:
    for name, pattern in _OTHERS:
        if re.match(pattern, data[:1024]):
            return f"a {name} file is not a readable picture: {TAKEN}"
    return f"this is not a readable picture: {TAKEN}"


def loaded(image: Image.Image, data: bytes) -> Image.Image:
    """The picture with its pixels. Raises `BadPicture` when they cannot be read, or not all of them."""
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        cut = "truncated" in str(error) or isinstance(error, EOFError)
        if cut and image.format == "JPEG" and (whole := _without_its_end(data)) is not None:
            return whole
        if cut:
            raise BadPicture(f"this {image.format} picture is truncated: a part of its file is missing") from error
        raise BadPicture(f"this {image.format} picture is damaged and not a readable one") from error
    return image


def _without_its_end(data: bytes) -> Image.Image | None:
    """A JPEG that lacks only the marker at its end, as some cameras leave it. None: pixels are missing.

    With the marker put back, the reader ignores what stands before it if it has all pixels already, and else reads pixels from
    it. So nothing is missing if it makes no difference what stands there."""
    found = []
    for filler in _FILLERS:
        image = Image.open(io.BytesIO(data.removesuffix(b"\xff") + filler + b"\xff\xd9"), formats=("JPEG",))
        image.load()
        found.append(image)
    return found[0] if found[0].tobytes() == found[1].tobytes() else None
