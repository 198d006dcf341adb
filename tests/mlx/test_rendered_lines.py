"""What the vision model is trained on equals what mlx-vlm's processor will show it."""

from __future__ import annotations

import random

import numpy as np
import pytest
from mlx_vlm.models.qwen3_vl.processing_qwen3_vl import Qwen3VLImageProcessor
from PIL import Image

from training.vision import rendering, texts


@pytest.fixture(scope="module")
def processor() -> Qwen3VLImageProcessor:
    return Qwen3VLImageProcessor(
        patch_size=rendering.PATCH,
        merge_size=rendering.MERGE,
        min_pixels=rendering.MIN_PIXELS,
        max_pixels=rendering.MAX_PIXELS,
    )


@pytest.mark.parametrize("size", [(20, 17), (33, 200), (64, 512), (70, 400), (300, 900), (26, 40)])
def test_patches_are_those_of_the_processor(processor: Qwen3VLImageProcessor, size: tuple[int, int]) -> None:
    height, width = size
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    shown = processor([image])
    goal = rendering.resized(height, width)
    assert shown["image_grid_thw"].tolist() == [[1, goal[0] // rendering.PATCH, goal[1] // rendering.PATCH]]
    ours = rendering.patches(image, goal).reshape(-1, 3, 1, rendering.PATCH**2)
    theirs = shown["pixel_values"].reshape(-1, 3, 2, rendering.PATCH**2)
    assert np.abs(ours - theirs).max() < 1e-6


def test_another_image_of_like_size_becomes_as_many_patches() -> None:
    rng = random.Random(4)
    for _ in range(300):
        shape = rendering.shape(rng)
        assert rendering.resized(*rendering.alike(rng, *shape)) == rendering.resized(*shape)


def test_a_held_out_word_is_held_out_in_every_case() -> None:
    words = [f"word{number}" for number in range(5_000)]
    held = [word for word in words if texts.is_held_out(word)]
    assert 0.08 < len(held) / len(words) < 0.12
    assert all(texts.is_held_out(word.upper()) and texts.is_held_out(word.capitalize()) for word in held)


def test_numbers_of_a_line_can_be_written_with_the_model_s_characters() -> None:
    rng = random.Random(2)
    drawn = {texts.draw(rng, kind="number", longest=12) for _ in range(500)}
    assert len(drawn) > 300
    assert all(len(text) <= 12 and text.isascii() and text.isprintable() for text in drawn)
