"""`duet-tiny-vl` reads rendered text, through the whole stack. The pictures were made by `training/vision/pictures.py`."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from PIL import Image

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


def test_a_photograph_s_format_does_not_matter(client: openai.OpenAI) -> None:
    name = sorted(TEXTS)[0]
    buffer = io.BytesIO()
    with Image.open(PICTURES / name) as image:
        image.save(buffer, "JPEG", quality=90)
    assert ask(client, url(buffer.getvalue(), "jpeg"), model="ocr") == TEXTS[name]


def test_two_pictures_are_read_in_their_order(client: openai.OpenAI) -> None:
    first, second = sorted(TEXTS)[:2]
    urls = [url((PICTURES / name).read_bytes()) for name in (first, second)]
    assert ask(client, *urls) == f"{TEXTS[first]}\n{TEXTS[second]}"


def test_without_a_picture_it_says_what_it_is(client: openai.OpenAI) -> None:
    answer = ask(client, text="Who are you?")
    assert answer.startswith("I am duet-tiny-vl, a demonstration model")
