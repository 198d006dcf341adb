"""`duet-tiny-vl` reads rendered text, through the whole stack. The pictures were made by `training/vision/pictures.py`."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from PIL import Image, ImageOps

import models
from duet.testing.stack import Stack

PICTURES = models.CARDS / "demo" / "pictures"
TEXTS: dict[str, str] = json.loads((PICTURES / "texts.json").read_text(encoding="utf-8"))
MODEL = "duet-tiny-vl"


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.engine_url}/v1", api_key=stack.key, max_retries=0, timeout=120) as client:
        yield client


def url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()


def ask(client: openai.OpenAI, *urls: str, text: str | None = "Read the text in the image.", model: str = MODEL) -> str:
    content: list[Any] = [{"type": "image_url", "image_url": {"url": found}} for found in urls]
    if text is not None:
        content.append({"type": "text", "text": text})
    answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}], temperature=0)
    return answer.choices[0].message.content or ""


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_the_text_of_a_picture_is_read(client: openai.OpenAI, name: str) -> None:
    assert ask(client, url((PICTURES / name).read_bytes())) == TEXTS[name]


@pytest.mark.parametrize("text", ["OCR:", "Text Recognition:", "What does the image say?", None])
def test_other_words_of_the_question_and_none_at_all_give_the_same(client: openai.OpenAI, text: str | None) -> None:
    name = sorted(TEXTS)[0]
    assert ask(client, url((PICTURES / name).read_bytes()), text=text) == TEXTS[name]


def dark_ink() -> tuple[str, Image.Image]:
    """A text, and its picture in grey with dark letters on a light ground."""
    for name in sorted(TEXTS):
        with Image.open(PICTURES / name) as image:
            grey = image.convert("L")
        if grey.getpixel((0, 0)) > 200:
            return TEXTS[name], grey
    raise AssertionError


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def variants() -> dict[str, bytes]:
    """One picture in many ways of storing it. On a transparent ground it is black on black until it is put on white."""
    _, grey = dark_ink()
    ink = ImageOps.invert(grey)
    clear = Image.merge("RGBA", (*[Image.new("L", grey.size)] * 3, ink))
    sixteen = grey.convert("I").point(lambda value: value * 257).convert("I;16")
    turned = Image.Exif()
    turned[0x0112] = 6
    palette = Image.new("P", grey.size)
    palette.putdata([*grey.convert("L").tobytes()])
    palette.putpalette([0, 0, 0] * 256)
    return {
        "jpeg": saved(grey, "JPEG", quality=90),
        "progressive": saved(grey.convert("RGB"), "JPEG", quality=90, progressive=True),
        "cmyk": saved(grey.convert("CMYK"), "JPEG", quality=90),
        "clear png": saved(clear, "PNG"),
        "clear webp": saved(clear, "WEBP", lossless=True),
        "clear avif": saved(clear, "AVIF", quality=90),
        "clear tiff": saved(clear, "TIFF"),
        "clear grey": saved(Image.merge("LA", (Image.new("L", grey.size), ink)), "PNG"),
        "palette of alphas": saved(palette, "PNG", transparency=bytes(255 - value for value in range(256))),
        "sixteen bits png": saved(sixteen, "PNG"),
        "sixteen bits tiff": saved(sixteen, "TIFF"),
        "fractions": saved(grey.convert("F").point(lambda value: value * (1 / 255) + 0), "TIFF"),
        "gif": saved(grey.convert("P"), "GIF"),
        "bmp": saved(grey, "BMP"),
        "turned": saved(grey.transpose(Image.Transpose.ROTATE_90), "PNG", exif=turned),
        "animated": saved(grey, "PNG", save_all=True, append_images=[ink]),
    }


@pytest.mark.parametrize("name", sorted(variants()))
def test_the_way_a_picture_is_stored_does_not_matter(client: openai.OpenAI, name: str) -> None:
    assert ask(client, url(variants()[name], "jpg"), model="ocr") == dark_ink()[0]


def test_two_pictures_are_read_in_their_order(client: openai.OpenAI) -> None:
    first, second = sorted(TEXTS)[:2]
    urls = [url((PICTURES / name).read_bytes()) for name in (first, second)]
    assert ask(client, *urls) == f"{TEXTS[first]}\n{TEXTS[second]}"


def test_without_a_picture_it_says_what_it_is(client: openai.OpenAI) -> None:
    answer = ask(client, text="Who are you?")
    assert answer.startswith("I am duet-tiny-vl, a demonstration model")
