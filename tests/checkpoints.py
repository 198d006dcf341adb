"""Tiny random checkpoints of every kind that the engine serves, written to a folder as Hugging Face lays them out.

One byte is one token (plus special tokens), so text and token ids say the same. Larger query and key projections make
attention peaked: greedy answers depend on the whole prompt, and a damaged cache shows as another answer. The rows of special
tokens are zero, so a greedy answer never ends early.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
    "<|video_pad|>", "<|audio_start|>", "<|audio_end|>", "<|audio_pad|>", "<asr_text>",
)  # fmt: skip
VOCABULARY = 320
CONTEXT = 4096
# A conversation of one message of role "raw" is that text alone: a prompt of one token can be asked for.
TEMPLATE = """\
{%- if messages[0]['role'] == 'raw' -%}{{ messages[0]['content'] }}{%- else -%}
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}{% endif %}<|im_end|>
{% endfor %}{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}{%- endif -%}"""

_TEXT: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "rms_norm_eps": 1e-6, "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True, "rope_theta": 10000.0, "attention_bias": False, "hidden_act": "silu",
}  # fmt: skip
_VISION: dict[str, Any] = {
    "depth": 2, "hidden_size": 64, "intermediate_size": 128, "out_hidden_size": 64, "num_heads": 2, "patch_size": 16,
    "spatial_patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3, "in_chans": 3,
    "num_position_embeddings": 256,
}  # fmt: skip


def _ids() -> dict[str, int]:
    return {name: 256 + i for i, name in enumerate(SPECIAL)}


def _image_ids() -> dict[str, int]:
    ids = _ids()
    return {
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
    }


def _configs() -> dict[str, dict[str, Any]]:
    hybrid_text = {name: value for name, value in _TEXT.items() if name != "rope_theta"}
    rope = {"type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 10000.0}
    return {
        "plain": {**_TEXT, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
        "four bits": {
            **_TEXT, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "quantization": {"group_size": 32, "bits": 4},
        },
        "embedding": {**_TEXT, "model_type": "qwen3", "architectures": ["Qwen3Model"]},
        "windowed": {
            **_TEXT, "model_type": "gemma3_text", "num_hidden_layers": 3, "rope_local_base_freq": 10000.0,
            "query_pre_attn_scalar": 32, "sliding_window": 32, "sliding_window_pattern": 3,
        },
        "hybrid": {
            "model_type": "qwen3_5", "architectures": ["Qwen3_5ForConditionalGeneration"], "vocab_size": VOCABULARY,
            **{name: value for name, value in _image_ids().items() if name != "vision_token_id"},
            "text_config": {
                **hybrid_text, "model_type": "qwen3_5_text", "num_hidden_layers": 4, "linear_num_value_heads": 4,
                "linear_num_key_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_conv_kernel_dim": 4,
                "full_attention_interval": 4, "eos_token_id": _ids()["<|im_end|>"],
                "rope_parameters": {**rope, "partial_rotary_factor": 0.25},
            },
            "vision_config": {**_VISION, "model_type": "qwen3_5", "deepstack_visual_indexes": []},
        },
        "vision": {
            "model_type": "qwen3_vl", "architectures": ["Qwen3VLForConditionalGeneration"], "vocab_size": VOCABULARY,
            **_image_ids(),
            "text_config": {
                **_TEXT, "model_type": "qwen3_vl_text",
                "rope_scaling": {"type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True},
            },
            "vision_config": {**_VISION, "model_type": "qwen3_vl", "deepstack_visual_indexes": [0]},
        },
    }  # fmt: skip


KINDS = ("plain", "hybrid", "windowed", "vision")


def write(kind: str, folder: Path, dtype: str = "float32") -> Path:
    """Write a checkpoint of `kind` (one of `KINDS`, "four bits", "embedding" or "qwen3_asr") and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "qwen3_asr":
        return _write_asr(folder)
    config = {**_configs()[kind], "eos_token_id": _ids()["<|im_end|>"]}
    _write_tokenizer(folder, "Qwen2TokenizerFast" if kind in ("vision", "hybrid") else "PreTrainedTokenizerFast")
    (folder / "config.json").write_text(json.dumps(config))
    if "vision_config" in config:
        (folder / "preprocessor_config.json").write_text(json.dumps(_image_processor()))
    model = _model(folder, config)
    shaped = [
        (name, _shaped(name, value).astype(getattr(mx, dtype))) for name, value in tree_flatten(model.parameters())
    ]
    if (quantisation := config.get("quantization")) is not None:
        nn.quantize(model.load_weights(shaped), **quantisation)
        shaped = tree_flatten(model.parameters())
    weights = dict(shaped)
    if kind in ("plain", "embedding", "four bits"):
        weights = {name.replace("language_model.", ""): value for name, value in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


def _model(folder: Path, config: dict[str, Any]) -> Any:
    from mlx_vlm.utils import get_model_and_args, update_module_configs

    found, _ = get_model_and_args(config=dict(config), model_path=folder)
    filled = {**config, **{name: config.get(name) or {} for name in ("text_config", "vision_config", "audio_config")}}
    parsed = found.ModelConfig.from_dict(filled)
    mx.random.seed(3)
    return found.Model(
        update_module_configs(parsed, found, filled, ["text", "vision", "perceiver", "projector", "audio"])
    )


def _shaped(name: str, value: mx.array) -> mx.array:
    if "embed_tokens" in name and value.ndim == 2:
        # Small beside what attention adds: else the last token alone would decide, whatever stood before it.
        rows = mx.random.normal(value.shape) * 0.1 * value.shape[1] ** -0.5
        rows[256:] = 0.0
        return rows
    if name.endswith("model.norm.weight"):
        return value * 30  # so that the best token stands out all the same
    if "q_norm" in name or "k_norm" in name:
        return value * 0 + 2.5  # models that normalise queries and keys take no larger projections
    return value * 4 if "q_proj" in name or "k_proj" in name else value


def _image_processor() -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor", "patch_size": 16,
        "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 32 * 32, "max_pixels": 256 * 256,
        "size": {"shortest_edge": 32 * 32, "longest_edge": 256 * 256}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "do_rescale": True, "do_normalize": True, "do_resize": True, "rescale_factor": 1 / 255, "do_convert_rgb": True,
    }  # fmt: skip


def _byte_characters() -> list[str]:
    """Byte-level BPE's character of each byte, by byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _write_tokenizer(folder: Path, kind: str) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(_byte_characters())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    settings = {
        "tokenizer_class": kind, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": CONTEXT,
        "chat_template": TEMPLATE, "clean_up_tokenization_spaces": False, "additional_special_tokens": list(SPECIAL[3:]),
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _write_asr(folder: Path) -> Path:
    """A Qwen3-ASR checkpoint that mlx-audio loads strictly."""
    from mlx_audio.stt.models.qwen3_asr.config import ModelConfig
    from mlx_audio.stt.models.qwen3_asr.qwen3_asr import Model

    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(_byte_characters())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.add_tokens([AddedToken(name, special=name != "<asr_text>", normalized=False) for name in SPECIAL])
    fast.save_pretrained(folder)
    ids = {name: fast.convert_tokens_to_ids(name) for name in SPECIAL}
    config = {
        "model_type": "qwen3_asr", "architectures": ["Qwen3ASRForConditionalGeneration"],
        "audio_token_id": ids["<|audio_pad|>"], "audio_start_token_id": ids["<|audio_start|>"],
        "audio_end_token_id": ids["<|audio_end|>"], "support_languages": ["Chinese", "English"],
        "audio_config": {
            "num_mel_bins": 128, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "d_model": 32,
            "n_window": 50, "n_window_infer": 800, "output_dim": 64, "downsample_hidden_size": 8, "max_source_positions": 1500,
        },
        "text_config": {
            "model_type": "qwen3", "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
            "tie_word_embeddings": True, "rope_theta": 1e6, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6,
        },
    }  # fmt: skip
    mx.random.seed(3)
    model = Model(ModelConfig.from_dict(dict(config)))._model
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    extractor = WhisperFeatureExtractor(
        feature_size=128, sampling_rate=16000, hop_length=160, n_fft=400, return_attention_mask=True
    )
    extractor.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
