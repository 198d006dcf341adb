"""The checkpoint's folder: tokens, chat template, image settings, and weights with Hugging Face's names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from training.vision.model import Qwen3VL
from training.vision.rendering import MAX_PIXELS, MERGE, MIN_PIXELS, PATCH

_NAMES: Final = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
VOCABULARY: Final = 264
CONTEXT: Final = 2048
TEMPLATE: Final = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image_url' in part -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in part -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}{% endif %}<|im_end|>
{% endfor %}{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


def _byte_letters() -> list[str]:
    """The character that byte-level BPE uses for each byte, in the order of bytes."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def tokenizer() -> Tokenizer:
    """A tokenizer with one token per byte: the model writes letter by letter."""
    found = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(_byte_letters())}, merges=[]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in _NAMES])
    return found


SPECIAL: Final[dict[str, int]] = {name: 256 + i for i, name in enumerate(_NAMES)}
_PIECES: Final = re.compile("(" + "|".join(map(re.escape, _NAMES)) + ")")


def encode(text: str) -> list[int]:
    """The ids that `tokenizer()` gives, but faster."""
    ids: list[int] = []
    for piece in _PIECES.split(text):
        ids += [SPECIAL[piece]] if piece in SPECIAL else piece.encode()
    return ids


def save(model: Qwen3VL, config: dict[str, Any], folder: Path, dtype: torch.dtype = torch.float16) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    bias, kernel = (weights.pop(f"model.visual.patch_embed.{part}") for part in ("bias", "weight"))
    # The processor repeats a still image as two frames, so each gets half of the weight.
    frames = kernel.view(len(kernel), 3, 1, PATCH, PATCH).expand(-1, -1, 2, -1, -1) / 2
    weights |= {"model.visual.patch_embed.proj.weight": frames, "model.visual.patch_embed.proj.bias": bias}
    tensors = {name: value.to(dtype).contiguous() for name, value in weights.items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    _write(folder / "config.json", {**config, "torch_dtype": str(dtype).removeprefix("torch.")})
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2TokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
            "model_max_length": CONTEXT, "chat_template": TEMPLATE, "clean_up_tokenization_spaces": False,
            "additional_special_tokens": list(_NAMES[3:]),
        },
    )  # fmt: skip
    _write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor", "patch_size": PATCH,
            "merge_size": MERGE, "temporal_patch_size": 2, "min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS,
            "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
            "do_rescale": True, "do_normalize": True, "do_resize": True, "rescale_factor": 1 / 255, "do_convert_rgb": True,
        },
    )  # fmt: skip


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
