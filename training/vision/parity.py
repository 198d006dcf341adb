"""Check that the torch model and mlx-vlm compute the same logits, with one float32 checkpoint, images and prompts.

    build/train/venv/bin/python -m training.vision.parity write build/train/vision/parity
    .venv/bin/python -m training.vision.parity compare build/train/vision/parity

`write` (torch) makes a random checkpoint, images and the checkpoint's logits. `compare` (mlx-vlm with its own
processor) prints the largest difference and fails if it exceeds a limit.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

CASES: Final = (
    {"lines": 1, "prompt": "OCR:"}, {"lines": 2, "prompt": "Read."}, {"lines": 1, "prompt": "读"}, {"lines": 2, "prompt": ""},
)  # fmt: skip
LARGEST: Final = 5e-5
"""The largest allowed difference, for logits with a spread of about 1. Float32 rounds differently if sums have another
order. Measured: 6e-6."""


def write(folder: Path) -> None:
    import torch

    from training.vision import checkpoint, rendering, texts
    from training.vision.model import Qwen3VL, configuration, positions

    torch.manual_seed(3)
    config = configuration(checkpoint.SPECIAL, checkpoint.VOCABULARY)
    model = Qwen3VL(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that no bias or scale is neutral
            parameter.add_(0.05 * torch.randn_like(parameter))
    checkpoint.save(model, config, folder, torch.float32)
    rng = random.Random(5)
    for number, case in enumerate(CASES):
        shapes = [rendering.shape(rng) for _ in range(case["lines"])]
        lines = [rendering.render(rng, *shape, lambda _: texts.draw(rng), rendering.TRAINING_FONTS) for shape in shapes]
        sizes = [rendering.resized(*shape) for shape in shapes]
        grids = [(height // rendering.PATCH, width // rendering.PATCH) for height, width in sizes]
        pictures = "".join(
            f"<|vision_start|>{'<|image_pad|>' * (a * b // rendering.MERGE**2)}<|vision_end|>" for a, b in grids
        )
        text = f"<|im_start|>user\n{pictures}{case['prompt']}<|im_end|>\n<|im_start|>assistant\nabc"
        ids = checkpoint.encode(text)
        with torch.no_grad():
            seen = [
                model.visual.merger(model.visual(torch.from_numpy(rendering.patches(line.image, size))[None], grid))
                for line, size, grid in zip(lines, sizes, grids, strict=True)
            ]
            where = torch.tensor(positions(ids, grids, model.image_token))[:, None]
            logits = model.logits(model.language_model(model.embed(torch.tensor([ids]), seen), where))
        np.save(folder / f"logits{number}.npy", logits[0].numpy())
        for i, line in enumerate(lines):
            line.image.save(folder / f"image{number}_{i}.png")


def compare(folder: Path) -> float:
    """The largest absolute difference between the logits of both models."""
    import mlx.core as mx
    from mlx_vlm.utils import load, prepare_inputs

    mx.set_default_device(mx.cpu)
    model: Any
    model, processor = load(str(folder))
    token = json.loads((folder / "config.json").read_text(encoding="utf-8"))["image_token_id"]
    largest = 0.0
    for number, case in enumerate(CASES):
        images = [Image.open(folder / f"image{number}_{i}.png") for i in range(case["lines"])]
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": case["prompt"]}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        inputs = dict(prepare_inputs(processor, images=images, prompts=prompt + "abc", image_token_index=token))
        grids = inputs["image_grid_thw"]
        found = model(inputs["input_ids"], inputs["pixel_values"], mask=None, image_grid_thw=grids)
        expected = np.load(folder / f"logits{number}.npy")
        difference = float(np.abs(np.array(found.logits[0].astype(mx.float32)) - expected).max())
        print(
            f"{case}: {expected.shape[0]} tokens, logits of spread {expected.std():.2f}, largest difference {difference:.2e}"
        )
        largest = max(largest, difference)
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("write", "compare"))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.part == "write":
        write(options.folder)
    elif (largest := compare(options.folder)) > LARGEST:
        raise SystemExit(f"the models differ by {largest:.2e}, more than {LARGEST:.0e}")


if __name__ == "__main__":
    main()
