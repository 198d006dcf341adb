"""A picture becomes what a browser shows on a white page: upright, in sRGB, three bytes a pixel. Only the child imports this."""

from __future__ import annotations

import math
import warnings
from typing import Any, Final

from PIL import Image

from engine.pictures.colour import to_srgb
from engine.pictures.limits import MAX_SEEN_PIXELS
from engine.pictures.opening import loaded, opened

_ORIENTATION: Final = 0x0112
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY_BITS: Final = {"L;2": 2, "L;4": 4}
_DEEP: Final = ("I;16", "I;16L", "I;16B", "I;16N")
_TO_8_BITS: Final = [(value * 255 + 32767) // 65535 for value in range(65536)]
_WHITE: Final = (255, 255, 255)


def converted(data: bytes) -> Image.Image:
    """The first frame. Raises `BadPicture`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata
        image = opened(data)
        covered, raw_mode = _first_tile(image)
        image = loaded(image, data)
        turn, profile = _turn(image), image.info.get("icc_profile")
        colours, alpha = _separated(image, _key(image, raw_mode))
        if image.format == "GIF" and covered is not None:
            alpha = _only_within(covered, image.size, alpha)
        picture = to_srgb(colours, profile if isinstance(profile, bytes) else None)
        if alpha is not None:
            page = Image.new("RGB", picture.size, _WHITE)
            page.paste(picture, mask=alpha)
            picture = page
        return picture if turn is None else picture.transpose(turn)


def _first_tile(image: Any) -> tuple[tuple[int, int, int, int] | None, str]:
    """Which part of the picture its data covers, and in which form a sample is stored. Known only until it is loaded."""
    if not getattr(image, "tile", None):
        return None, ""
    tile = image.tile[0]
    raw_mode = tile.args if isinstance(tile.args, str) else (tile.args or ("",))[0]
    return tile.extents, raw_mode if isinstance(raw_mode, str) else ""


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How the picture is set upright. A TIFF has been turned by its reader."""
    if image.format == "TIFF":
        return None
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # noqa: BLE001 - broken notes beside a picture do not make it unreadable
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def _key(image: Image.Image, raw_mode: str) -> Any:
    """Pillow's `transparency` in the scale of the pixels: the file has it in that of its samples."""
    key = image.info.get("transparency")
    if image.mode == "L" and isinstance(key, int):
        most = (1 << _GREY_BITS.get(raw_mode, 8)) - 1
        return (key & most) * 255 // most
    if image.mode == "RGB" and isinstance(key, tuple):
        return tuple(value >> 8 if raw_mode.endswith(";16B") else value & 255 for value in key)
    return key


def _separated(image: Image.Image, key: Any) -> tuple[Image.Image, Image.Image | None]:
    """Colours in mode L, RGB, CMYK or LAB, and alpha in mode L; both scaled down if the picture is huge."""
    if image.mode in _DEEP:
        return _separated_deep(image, key)
    if image.mode in ("I", "F"):
        return _reduced(_stretched(image)), None
    if image.mode == "1":
        image = image.convert("L")
    if image.mode in ("P", "PA", "RGBa", "La") or (key is not None and image.mode in ("L", "RGB")):
        image.info["transparency"] = key
        if key is None:
            del image.info["transparency"]
        has_alpha = key is not None or image.mode != "P" or "A" in (image.palette.mode if image.palette else "")
        image = image.convert("LA" if image.mode == "La" else "RGBA" if has_alpha else "RGB")
    if image.mode in ("RGBA", "LA"):
        return _without_alpha(image)
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGB")
    return _reduced(image), None


def _without_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    if _too_large(image):  # colours of transparent pixels must not bleed into their neighbours
        premultiplied = image.convert("RGBa" if image.mode == "RGBA" else "La")
        image = _reduced(premultiplied).convert(image.mode)
    alpha = image.getchannel("A")
    return image.convert("L" if image.mode == "LA" else "RGB"), alpha if alpha.getextrema() != (255, 255) else None


def _separated_deep(image: Image.Image, key: Any) -> tuple[Image.Image, Image.Image | None]:
    """16 bits a pixel."""
    wide = image.convert("I")
    alpha = None
    if isinstance(key, int):
        alpha = _reduced(wide.point([0 if value == key else 255 for value in range(65536)], "L"))
    return _reduced(wide.point(_TO_8_BITS, "L")), alpha


def _stretched(image: Image.Image) -> Image.Image:
    """Whole numbers of 32 bits and fractions. Black and white are the ends of the range that the values are in: 0 to 1 for
    fractions, 8 or 16 bits for whole numbers, and otherwise the least and the greatest value."""
    low, high = (float(value) for value in image.getextrema())
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = 0.0, 1.0
    tops = (1.0,) if image.mode == "F" else (255.0, 65535.0)
    black, white = low, high
    if low >= 0 and (fitting := [top for top in tops if high <= top]):
        black, white = 0.0, fitting[0]
    scale = 255.0 / (white - black) if white > black else 0.0
    fractions = image.convert("F").point(lambda value: value * scale + (0.5 - black * scale))
    return fractions.convert("L")


def _only_within(
    covered: tuple[int, int, int, int], size: tuple[int, int], alpha: Image.Image | None
) -> Image.Image | None:
    """A GIF's first frame may cover a part of the picture. The rest is transparent."""
    if covered == (0, 0, *size) or (alpha is not None and alpha.size != size):
        return alpha
    inside = Image.new("L", size, 0)
    inside.paste(255 if alpha is None else alpha.crop(covered), covered)
    return inside


def _too_large(image: Image.Image) -> bool:
    return bool(image.width * image.height > MAX_SEEN_PIXELS)


def _reduced(image: Image.Image) -> Image.Image:
    if not _too_large(image):
        return image
    scale = math.sqrt(MAX_SEEN_PIXELS / (image.width * image.height))
    size = (max(1, math.floor(image.width * scale)), max(1, math.floor(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX if image.mode == "LAB" else Image.Resampling.HAMMING)
