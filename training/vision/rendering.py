"""Render lines of text as images, and cut images into patches exactly as Qwen3-VL's processor does. No torch.

The fonts come from Debian packages (`PACKAGES`), in Debian's folders.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

PATCH: Final = 8
MERGE: Final = 2
CELL: Final = PATCH * MERGE
"""A token of the text model sees CELL x CELL pixels."""
MIN_PIXELS: Final = 1_024
MAX_PIXELS: Final = 16_384
FONTS: Final = Path("/usr/share/fonts")
PACKAGES: Final = (
    "fonts-dejavu-core fonts-liberation fonts-freefont-ttf fonts-lato fonts-open-sans fonts-urw-base35 fonts-linuxlibertine "
    "fonts-inconsolata fonts-cantarell fonts-crosextra-carlito fonts-noto-core fonts-roboto-unhinted fonts-crosextra-caladea"
)
TRAINING_FONTS: Final = (
    "truetype/dejavu/DejaVuSans.ttf", "truetype/dejavu/DejaVuSans-Bold.ttf", "truetype/dejavu/DejaVuSansMono.ttf",
    "truetype/dejavu/DejaVuSerif.ttf", "truetype/dejavu/DejaVuSerif-Bold.ttf",
    "truetype/liberation/LiberationSans-Regular.ttf", "truetype/liberation/LiberationSans-Bold.ttf",
    "truetype/liberation/LiberationSans-Italic.ttf", "truetype/liberation/LiberationSerif-Regular.ttf",
    "truetype/liberation/LiberationSerif-Bold.ttf", "truetype/liberation/LiberationMono-Regular.ttf",
    "truetype/freefont/FreeSans.ttf", "truetype/freefont/FreeSerif.ttf", "truetype/freefont/FreeSerifBold.ttf",
    "truetype/lato/Lato-Regular.ttf", "truetype/lato/Lato-Bold.ttf",
    "truetype/open-sans/OpenSans-Regular.ttf", "truetype/open-sans/OpenSans-Bold.ttf",
    "truetype/crosextra/Carlito-Regular.ttf", "truetype/crosextra/Carlito-Bold.ttf", "truetype/inconsolata/Inconsolata.otf",
    "truetype/noto/NotoSans-Regular.ttf", "truetype/noto/NotoSans-Bold.ttf", "truetype/noto/NotoSerif-Regular.ttf",
    "truetype/noto/NotoSerif-Bold.ttf", "opentype/cantarell/Cantarell-Regular.otf", "opentype/cantarell/Cantarell-Bold.otf",
    "opentype/urw-base35/C059-Roman.otf", "opentype/urw-base35/P052-Roman.otf", "opentype/urw-base35/URWBookman-Light.otf",
    "opentype/urw-base35/URWGothic-Book.otf", "opentype/urw-base35/NimbusSans-Regular.otf",
    "opentype/linux-libertine/LinLibertine_R.otf", "opentype/linux-libertine/LinBiolinum_R.otf",
)  # fmt: skip
HELD_OUT_FONTS: Final = (
    "truetype/roboto/unhinted/RobotoTTF/Roboto-Regular.ttf", "truetype/roboto/unhinted/RobotoTTF/Roboto-Bold.ttf",
    "truetype/crosextra/Caladea-Regular.ttf", "truetype/crosextra/Caladea-Bold.ttf",
)  # fmt: skip


def require_fonts() -> None:
    """Raises `FileNotFoundError` if a font is missing. The message names the packages to install."""
    if missing := [name for name in (*TRAINING_FONTS, *HELD_OUT_FONTS) if not (FONTS / name).exists()]:
        raise FileNotFoundError(f"no {FONTS / missing[0]}: apt-get install wamerican {PACKAGES}")


@dataclass(frozen=True)
class Line:
    """An image of a line. `centres` has the column of each character's centre, in pixels."""

    text: str
    image: Image.Image
    centres: tuple[float, ...]


def resized(height: int, width: int) -> tuple[int, int]:
    """The size to which Qwen3-VL's processor resizes an image ("smart resize"): multiples of CELL within the limits."""
    rows, columns = round(height / CELL) * CELL, round(width / CELL) * CELL
    if rows * columns > MAX_PIXELS:
        scale = math.sqrt(height * width / MAX_PIXELS)
        rows, columns = (max(CELL, math.floor(side / scale / CELL) * CELL) for side in (height, width))
    elif rows * columns < MIN_PIXELS:
        scale = math.sqrt(MIN_PIXELS / (height * width))
        rows, columns = (math.ceil(side * scale / CELL) * CELL for side in (height, width))
    return rows, columns


def patches(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Patches [rows * columns, 3 * PATCH * PATCH] in -1..1 of `image`, resized to `size` (height, width).

    They are in the processor's order: cells row by row, and within each cell its MERGE x MERGE patches.
    """
    height, width = size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, np.float32) / 127.5 - 1
    cells = pixels.reshape(height // CELL, MERGE, PATCH, width // CELL, MERGE, PATCH, 3)
    return cells.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3 * PATCH * PATCH)


class Font:
    """A font at one size. It remembers the width of each character."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size
        self.drawn = ImageFont.truetype(str(FONTS / name), size, layout_engine=ImageFont.Layout.BASIC)
        self._advance: dict[str, float] = {}

    def advances(self, text: str) -> list[float]:
        for character in set(text) - set(self._advance):
            self._advance[character] = self.drawn.getlength(character)
        return [self._advance[character] for character in text]


_font = lru_cache(maxsize=4096)(Font)


def shape(rng: random.Random) -> tuple[int, int]:
    """The height and width of an image that a user might send: 26 to 68 pixels high, and 1.5 to 11 times as wide."""
    height = round(math.exp(rng.uniform(math.log(26), math.log(68))))
    ratio = math.exp(rng.uniform(math.log(1.5), math.log(11)))
    return height, max(40, min(round(height * ratio), 560))


def alike(rng: random.Random, height: int, width: int) -> tuple[int, int]:
    """Another size that the processor resizes to the same one."""
    goal = resized(height, width)
    for _ in range(20):
        scale = rng.uniform(0.8, 1.4)
        near = round(height * scale * rng.uniform(0.9, 1.1)), round(width * scale * rng.uniform(0.9, 1.1))
        if resized(*near) == goal:
            return near
    return height, width


def render(rng: random.Random, height: int, width: int, propose: Callable[[int], str], fonts: tuple[str, ...]) -> Line:
    """A line that fits into an image of `height` x `width` and fills some of it. `propose(longest)` draws a text."""
    name = rng.choice(fonts)
    size = max(14, round(height * rng.uniform(0.45, 0.8)))
    text, font, box = _fitting(_font(name, size), height, width, propose)
    left, top, right, bottom = box
    free = width - (right - left), height - (bottom - top)
    x = rng.uniform(0.1, 0.9) * free[0] if rng.random() < 0.5 else free[0] / 2
    x, y = round(x) - left, round((0.5 + rng.uniform(-0.3, 0.3)) * free[1]) - top
    paper, ink = _colours(rng)
    image = Image.new("RGB", (width, height), paper)
    ImageDraw.Draw(image).text((x, y), text, fill=ink, font=font.drawn)
    return Line(text, _worn(rng, image), tuple(x + centre for centre in _centres(font, text)))


def _centres(font: Font, text: str) -> list[float]:
    """The centre of each character, measured from the start of the text. Kerning is spread evenly over all characters."""
    widths = font.advances(text)
    scale = font.drawn.getlength(text) / max(1e-6, sum(widths))
    return [scale * (end - width / 2) for end, width in zip(accumulate(widths), widths, strict=True)]


Box = tuple[float, float, float, float]


def _fitting(font: Font, height: int, width: int, propose: Callable[[int], str]) -> tuple[str, Font, Box]:
    """The widest of some proposed texts that fits, its font and its box. Proposals end at the first that fills half of
    the width. If none fits, it tries a smaller font."""
    longest = max(4, round(width / (0.45 * font.size)))
    proposals = [propose(longest)]
    while len(proposals) < 5 and not width / 2 < sum(font.advances(proposals[-1])) < width - 4:
        proposals.append(propose(longest))
    for text in sorted(proposals, key=lambda text: -sum(font.advances(text))):
        if sum(font.advances(text)) > width + 4:
            continue
        box = font.drawn.getbbox(text)
        if box[2] - box[0] <= width - 4 and box[3] - box[1] <= height - 2:
            return text, font, box
    return _fitting(_font(font.name, round(font.size * 0.85)), height, width, propose)


def _colours(rng: random.Random) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Colours of paper and ink with enough contrast. Dark on light is more frequent than light on dark."""
    if rng.random() < 0.3:
        return (255, 255, 255), (0, 0, 0)
    while True:
        first, second = (tuple(rng.randrange(256) for _ in range(3)) for _ in range(2))
        light, dark = sorted((first, second), key=_luminance, reverse=True)
        if _luminance(light) - _luminance(dark) > 95:
            return (light, dark) if rng.random() < 0.7 else (dark, light)


def _luminance(colour: tuple[int, ...]) -> float:
    """Luminance according to ITU-R BT.601."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _worn(rng: random.Random, image: Image.Image) -> Image.Image:
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.02 * image.height)))
    if rng.random() < 0.3:
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal((image.height, image.width, 1), np.float32)
        pixels = np.asarray(image, np.float32) + noise * rng.uniform(2, 14)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image
