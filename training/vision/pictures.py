"""Make the pictures for the demo and the tests: `models/demo/pictures`.

    build/train/venv/bin/python -m training.vision.pictures

They show digits and words that training never uses, in fonts of the training and in fonts that it never saw. The
pictures are stored, because a machine may lack the fonts.
"""

from __future__ import annotations

import json
from typing import Final

from PIL import Image, ImageDraw, ImageFont

import models
from training.vision.rendering import FONTS

FOLDER: Final = models.CARDS / "demo" / "pictures"
Colour = tuple[int, int, int]
PICTURES: Final[tuple[tuple[str, str, str, int, Colour, Colour], ...]] = (
    ("archive.png", "Archive", "truetype/liberation/LiberationSans-Regular.ttf", 32, (255, 255, 255), (0, 0, 0)),
    ("date.png", "2026-11-21", "truetype/dejavu/DejaVuSansMono.ttf", 26, (250, 245, 225), (30, 30, 90)),
    ("kingdoms.png", "kingdoms", "truetype/dejavu/DejaVuSerif.ttf", 28, (255, 240, 200), (100, 20, 20)),
    ("accepted.png", "accepted answer", "truetype/crosextra/Caladea-Regular.ttf", 28, (255, 255, 255), (20, 60, 30)),
    ("price.png", "$49.95", "truetype/roboto/unhinted/RobotoTTF/Roboto-Bold.ttf", 30, (20, 70, 50), (245, 245, 245)),
)  # fmt: skip
"""File, text, font, size in pixels, paper, ink."""


def draw(text: str, font_file: str, size: int, paper: Colour, ink: Colour) -> Image.Image:
    """An image of `text` in one line. Margins are a third of the font size."""
    font = ImageFont.truetype(str(FONTS / font_file), size, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = font.getbbox(text)
    margin = size // 3
    image = Image.new("RGB", (round(right - left) + 2 * margin, round(bottom - top) + 2 * margin), paper)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, fill=ink, font=font)
    return image


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text, font, size, paper, ink in PICTURES:
        draw(text, font, size, paper, ink).save(FOLDER / name, optimize=True)
    texts = {name: text for name, text, *_ in PICTURES}
    (FOLDER / "texts.json").write_text(json.dumps(texts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
