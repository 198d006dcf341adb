"""Random checkpoints in Hugging Face's layout. Every MLX server loads them offline.

    python -m benchmarks.kv.checkpoints [--out FOLDER] [--only nano,hybrid]

| name     | model                                                                     | keys and values            |
|----------|---------------------------------------------------------------------------|----------------------------|
| `nano`   | Qwen3, 3 M parameters: small, so the server's own cost shows              | 2 KiB per token            |
| `hybrid` | Qwen3.5: 6 of 8 layers gated delta net, 2 full attention                  | 2 KiB per token and states |
| `wide`   | Qwen3 with few weights and many keys and values: 201 MB for 1,024 tokens  | 192 KiB per token          |
| `thick`  | a quarter of the layers of `wide`: its files take a while to write        | 48 KiB per token           |

The norm weights of queries and keys are doubled, which makes attention peaked: a greedy answer depends on the whole
prompt, and a damaged or misplaced cache leads to another answer. The embedding rows (tied to the output) are zero for
special tokens and for tokens that are not plain printable ASCII. So greedy decoding never ends early, and every token
is text at once. The tokenizer is byte-level BPE, trained on the sources of Python's standard library.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

FOLDER = Path("build/bench/checkpoints")
VOCABULARY = 16384
UNUSED_IDS = 64
"""Ids above the tokenizer's. Real checkpoints have them too, because their tables are padded."""
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
    "<think>", "</think>",
)  # fmt: skip
ITEM_BYTES = 4
"""Weights, keys and values are float32: a CPU is fastest with it, and chunked prefill changes no greedy answer."""
TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] or [] -%}
{%- if part['type'] in ('image', 'image_url') -%}<|vision_start|><|image_pad|><|vision_end|>
{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}{% endif %}<|im_end|>
{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""
Matrix = NDArray[np.float32]

_TEXT: dict[str, Any] = {
    "rms_norm_eps": 1e-6, "vocab_size": VOCABULARY, "max_position_embeddings": 8192, "rope_theta": 1e6,
    "tie_word_embeddings": True, "attention_bias": False, "hidden_act": "silu", "bos_token_id": None,
    "eos_token_id": SPECIAL.index("<|im_end|>"), "pad_token_id": SPECIAL.index("<|endoftext|>"),
}  # fmt: skip
_NANO = {
    **_TEXT, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 128, "num_hidden_layers": 4,
    "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip
_WIDE = {**_NANO, "num_hidden_layers": 16, "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 256}
_THICK = {**_WIDE, "num_hidden_layers": 4}
_FULL_ATTENTION_EVERY = 4
_HYBRID = {
    "model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"], "vocab_size": VOCABULARY,
    "tie_word_embeddings": True, "eos_token_id": SPECIAL.index("<|im_end|>"),
    "image_token_id": SPECIAL.index("<|image_pad|>"), "video_token_id": SPECIAL.index("<|video_pad|>"),
    "vision_start_token_id": SPECIAL.index("<|vision_start|>"), "vision_end_token_id": SPECIAL.index("<|vision_end|>"),
    "text_config": {
        **_TEXT, "model_type": "qwen3_5_text", "hidden_size": 256, "num_hidden_layers": 8, "intermediate_size": 512,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_conv_kernel_dim": 4,
        "full_attention_interval": _FULL_ATTENTION_EVERY, "partial_rotary_factor": 0.25,
        "layer_types": [
            "linear_attention" if layer % _FULL_ATTENTION_EVERY else "full_attention" for layer in range(1, 9)
        ],
        "rope_parameters": {
            "type": "default", "rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25,
            "mrope_interleaved": True, "mrope_section": [4, 2, 2],
        },
    },
    "vision_config": {
        "model_type": "qwen3_5", "depth": 3, "hidden_size": 128, "intermediate_size": 256, "out_hidden_size": 256,
        "num_heads": 4, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
        "num_position_embeddings": 256, "deepstack_visual_indexes": [], "hidden_act": "gelu_pytorch_tanh",
    },
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {"nano": _NANO, "hybrid": _HYBRID, "wide": _WIDE, "thick": _THICK}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER, help="each checkpoint becomes a folder in this one")
    parser.add_argument("--only", default=",".join(CONFIGS), help="names of checkpoints, separated by commas")
    arguments = parser.parse_args()
    for name in arguments.only.split(","):
        folder = checkpoint(name, arguments.out)
        print(f"{folder}: {(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB")


def checkpoint(name: str, root: Path = FOLDER) -> Path:
    """The folder of one of `CONFIGS`. Writes it if it is missing; an existing folder is always complete."""
    folder = (root / name).absolute()
    if folder.exists():
        return folder
    part = folder.with_name(f".{name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    config, tokenizer = CONFIGS[name], _tokenizer(root)
    _write_tokenizer(part, tokenizer, vision="vision_config" in config)
    save_file(_weights(config, _muted(tokenizer)), part / "model.safetensors", metadata={"format": "pt"})
    (part / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}, indent=1))
    part.rename(folder)
    return folder


# Sizes of caches ----------------------------------------------------------------------------------------------------


def token_bytes(config: dict[str, Any]) -> int:
    """Bytes of keys and values that one token adds, over all full-attention layers."""
    text = config.get("text_config", config)
    kinds = text.get("layer_types") or ["full_attention"] * text["num_hidden_layers"]
    return int(kinds.count("full_attention") * 2 * text["num_key_value_heads"] * text["head_dim"] * ITEM_BYTES)


def state_bytes(config: dict[str, Any]) -> int:
    """Bytes of one state of all gated delta nets: the convolution's last inputs, and one matrix for each value head."""
    text = config.get("text_config", config)
    layers = (text.get("layer_types") or []).count("linear_attention")
    if not layers:
        return 0
    keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
    values = text["linear_num_value_heads"] * text["linear_value_head_dim"]
    convolution = (text["linear_conv_kernel_dim"] - 1) * (2 * keys + values)
    return int(layers * (convolution + values * text["linear_key_head_dim"]) * ITEM_BYTES)


# Weights ------------------------------------------------------------------------------------------------------------


def _weights(config: dict[str, Any], muted: list[int]) -> dict[str, Matrix]:
    """Tensors by Hugging Face's names. Matrices are normal with variance 1 / inputs, so activations keep their size."""
    generator = np.random.default_rng(5)
    hybrid = "text_config" in config
    text, stem = (config["text_config"], "model.language_model.") if hybrid else (config, "model.")
    found: dict[str, Matrix] = {}
    for name, shape, constant in _shapes(text, stem, hybrid=hybrid):
        found[name] = np.full(shape, constant, np.float32) if constant is not None else _normal(generator, shape)
    for name, shape, constant in _vision_shapes(config["vision_config"]) if hybrid else ():
        found[name] = np.full(shape, constant, np.float32) if constant is not None else _normal(generator, shape)
    # Small, so that the whole context decides the next token and not the last token alone.
    table = _normal(generator, (VOCABULARY, text["hidden_size"])) * np.float32(0.1)
    table[muted] = 0.0
    found[f"{stem}embed_tokens.weight"] = table
    return found


def _normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Matrix:
    return generator.standard_normal(shape, dtype=np.float32) * np.float32(math.prod(shape[1:]) ** -0.5)


Shape = tuple[str, tuple[int, ...], float | None]
"""A tensor's name, its shape, and the value of all its elements if they are equal."""


def _shapes(text: dict[str, Any], stem: str, *, hybrid: bool) -> Iterator[Shape]:
    """The decoder without its embedding. Qwen3.5 stores norm weights minus one."""
    one = 0.0 if hybrid else 1.0
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    yield f"{stem}norm.weight", (hidden,), one
    for layer in range(text["num_hidden_layers"]):
        place = f"{stem}layers.{layer}."
        yield f"{place}input_layernorm.weight", (hidden,), one
        yield f"{place}post_attention_layernorm.weight", (hidden,), one
        yield f"{place}mlp.gate_proj.weight", (inner, hidden), None
        yield f"{place}mlp.up_proj.weight", (inner, hidden), None
        yield f"{place}mlp.down_proj.weight", (hidden, inner), None
        if hybrid and text["layer_types"][layer] == "linear_attention":
            yield from _delta_net(text, f"{place}linear_attn.")
        else:
            yield from _attention(text, f"{place}self_attn.", one=one, gated=hybrid)


def _attention(text: dict[str, Any], place: str, *, one: float, gated: bool) -> Iterator[Shape]:
    hidden, head = text["hidden_size"], text["head_dim"]
    queries, keys = text["num_attention_heads"] * head, text["num_key_value_heads"] * head
    yield f"{place}q_proj.weight", (queries * (2 if gated else 1), hidden), None
    yield f"{place}k_proj.weight", (keys, hidden), None
    yield f"{place}v_proj.weight", (keys, hidden), None
    yield f"{place}o_proj.weight", (hidden, queries), None
    yield f"{place}q_norm.weight", (head,), one + 1.0
    yield f"{place}k_norm.weight", (head,), one + 1.0


def _delta_net(text: dict[str, Any], place: str) -> Iterator[Shape]:
    hidden, heads = text["hidden_size"], text["linear_num_value_heads"]
    keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
    values = heads * text["linear_value_head_dim"]
    yield f"{place}in_proj_qkv.weight", (2 * keys + values, hidden), None
    yield f"{place}in_proj_z.weight", (values, hidden), None
    yield f"{place}in_proj_b.weight", (heads, hidden), None
    yield f"{place}in_proj_a.weight", (heads, hidden), None
    yield f"{place}conv1d.weight", (2 * keys + values, 1, text["linear_conv_kernel_dim"]), None
    yield f"{place}dt_bias", (heads,), 1.0
    yield f"{place}A_log", (heads,), 0.5
    yield f"{place}norm.weight", (text["linear_value_head_dim"],), 1.0
    yield f"{place}out_proj.weight", (hidden, values), None


def _vision_shapes(vision: dict[str, Any]) -> Iterator[Shape]:
    """The vision tower. No benchmark sends it a picture, but servers refuse to load the model without it."""
    hidden, inner, stem = vision["hidden_size"], vision["intermediate_size"], "model.visual."
    merged, patch = hidden * vision["spatial_merge_size"] ** 2, vision["patch_size"]

    def linear(name: str, outputs: int, inputs: int) -> Iterator[Shape]:
        yield f"{stem}{name}.weight", (outputs, inputs), None
        yield f"{stem}{name}.bias", (outputs,), 0.0

    def norm(name: str) -> Iterator[Shape]:
        yield f"{stem}{name}.weight", (hidden,), 1.0
        yield f"{stem}{name}.bias", (hidden,), 0.0

    size = (hidden, vision["in_channels"], vision["temporal_patch_size"], patch, patch)
    yield f"{stem}patch_embed.proj.weight", size, None
    yield f"{stem}patch_embed.proj.bias", (hidden,), 0.0
    yield f"{stem}pos_embed.weight", (vision["num_position_embeddings"], hidden), None
    for block in range(vision["depth"]):
        yield from norm(f"blocks.{block}.norm1")
        yield from norm(f"blocks.{block}.norm2")
        yield from linear(f"blocks.{block}.attn.qkv", 3 * hidden, hidden)
        yield from linear(f"blocks.{block}.attn.proj", hidden, hidden)
        yield from linear(f"blocks.{block}.mlp.linear_fc1", inner, hidden)
        yield from linear(f"blocks.{block}.mlp.linear_fc2", hidden, inner)
    yield from norm("merger.norm")
    yield from linear("merger.linear_fc1", merged, merged)
    yield from linear("merger.linear_fc2", vision["out_hidden_size"], merged)


# Tokenizer ----------------------------------------------------------------------------------------------------------


def _tokenizer(root: Path) -> Tokenizer:
    """The tokenizer of an existing checkpoint, so that all checkpoints share it; a new one if there is none."""
    for file in root.glob("*/tokenizer.json"):
        return Tokenizer.from_file(str(file))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - UNUSED_IDS, min_frequency=2, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train([str(file) for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))], trainer)
    return tokenizer


def _muted(tokenizer: Tokenizer) -> list[int]:
    """Ids that greedy decoding must never pick: text that is not printable ASCII or begins a tag or a fence."""
    texts = [tokenizer.decode([i], skip_special_tokens=True) for i in range(VOCABULARY)]
    return [i for i, text in enumerate(texts) if not is_plain(text)]


def is_plain(text: str) -> bool:
    return bool(text) and text.isascii() and text.isprintable() and not set("<`") & set(text)


def _write_tokenizer(folder: Path, tokenizer: Tokenizer, *, vision: bool) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    settings = {
        "tokenizer_class": "Qwen2Tokenizer" if vision else "PreTrainedTokenizerFast", "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "bos_token": None, "model_max_length": 131072, "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    ends = [SPECIAL.index("<|im_end|>"), SPECIAL.index("<|endoftext|>")]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "pad_token_id": ends[1]}))
    if vision:
        _write_image_processor(folder)


def _write_image_processor(folder: Path) -> None:
    shared = {
        "processor_class": "Qwen3VLProcessor", "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 4096, "longest_edge": 262144},
        "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": True,
        "resample": 3,
    }  # fmt: skip
    image = {**shared, "image_processor_type": "Qwen2VLImageProcessorFast"}
    video = {**shared, "video_processor_type": "Qwen3VLVideoProcessor", "fps": 2, "min_frames": 2, "max_frames": 16}
    (folder / "preprocessor_config.json").write_text(json.dumps(image, indent=1))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=1))


if __name__ == "__main__":
    main()
