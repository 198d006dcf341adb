"""config.json and its companions: what they may say, and the keys that name code."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping
from typing import Any, Final

from engine.folders.architectures import library, runs, transcribes
from engine.folders.reading import Problem

CODE_KEYS: Final = frozenset({"auto_map", "custom_generate", "custom_pipelines", "trust_remote_code"})
"""Keys that name code, or allow it. No library gets to see them."""
_TYPE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")
_SIZES: Final = {
    "hidden_size": 1 << 20, "intermediate_size": 1 << 24, "num_hidden_layers": 1 << 12, "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14, "vocab_size": 1 << 24, "head_dim": 1 << 16, "max_position_embeddings": 1 << 31,
    "num_experts": 1 << 16, "num_local_experts": 1 << 16, "n_routed_experts": 1 << 16, "depth": 1 << 12,
    "encoder_layers": 1 << 12, "decoder_layers": 1 << 12, "d_model": 1 << 20, "patch_size": 1 << 12,
}  # fmt: skip
"""The largest value of each, far beyond any model. A library makes its layers before it looks at the weights."""
_NEVER_ZERO: Final = frozenset({"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "d_model"})
_LAYERS: Final = ("num_hidden_layers", "depth", "encoder_layers", "decoder_layers")
_PARTS: Final = (
    "text_config", "vision_config", "audio_config", "llm_config", "language_config", "thinker_config", "quantization",
    "quantization_config", "rope_scaling",
)  # fmt: skip
_BITS: Final = frozenset({1, 2, 3, 4, 5, 6, 8})
_GROUPS: Final = frozenset({16, 32, 64, 128})
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
MODEL_TYPE_OF_RECOGNISERS: Final = "qwen3_asr"


def check_config(config: Mapping[str, Any], *, tensors: int) -> str:
    """The model type of a config.json that can be loaded, of a model with so many tensors. Raises `Problem`."""
    if config.get("model_file"):
        raise Problem(
            f"config.json names code of the folder (model_file: {config['model_file']!r:.100}), which is never run: "
            "the folder brings its own code, use another copy"
        )
    kind = config.get("model_type")
    if not isinstance(kind, str) or not _TYPE.fullmatch(kind):
        raise Problem("config.json has no model_type: the folder is no model, or not complete")
    for name in _PARTS:
        if not isinstance(config.get(name, {}), dict | None):
            raise Problem(f"config.json: {name} is not an object")
    for where, part in _nested(config):
        _check_sizes(where, part, tensors)
    _check_quantization(config.get("quantization"))
    return kind


def check_architecture(config: Mapping[str, Any], kind: str, *, embeds: bool) -> None:
    """Raises `Problem` for an architecture that no code of the engine runs."""
    if kind == MODEL_TYPE_OF_RECOGNISERS:
        if "classify_num" in (config.get("thinker_config") or {}):
            raise Problem("config.json: classify_num: this is a forced aligner, which does not transcribe")
        return
    if runs(kind, embeds=embeds):
        return
    if transcribes(kind):
        raise Problem(f"config.json: {kind} does not transcribe here: Qwen3-ASR does")
    if config.get("auto_map"):
        raise Problem(
            f"config.json: the architecture {kind} is code of the folder (auto_map), which is never run: {library()} "
            "has no such architecture"
        )
    raise Problem(f"config.json: {library()} has no architecture {kind}")


def check_tokenizer(names: Container[str], settings: Mapping[str, Any]) -> None:
    """Raises `Problem` for a folder that has no tokenizer, or one that is code. `names` are its files."""
    if any(name in names for name in _TOKENIZERS):
        return
    if isinstance(settings.get("auto_map"), dict) and "AutoTokenizer" in settings["auto_map"]:
        raise Problem(
            "tokenizer_config.json: the tokenizer is code of the folder (auto_map), which is never run: "
            "use a copy with tokenizer.json"
        )
    raise Problem("tokenizer.json is missing: without a tokenizer no text can be read; download the folder again")


def without_code(value: Any) -> Any:
    """A file of settings without the keys that name code, at any depth."""
    if isinstance(value, dict):
        return {name: without_code(inner) for name, inner in value.items() if name not in CODE_KEYS}
    return [without_code(inner) for inner in value] if isinstance(value, list) else value


def _nested(config: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield where, config
    for name, part in config.items():
        if isinstance(part, dict) and name.endswith("_config"):
            yield from _nested(part, f"{where}{name}.")


def _check_sizes(where: str, part: Mapping[str, Any], tensors: int) -> None:
    for name in part.keys() & _SIZES.keys():
        value, most = part[name], _SIZES[name]
        if value is None or isinstance(value, list):  # not said, or said for each layer
            continue
        least = 1 if name in _NEVER_ZERO and where in ("", "text_config.") else 0
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise Problem(f"config.json: {where}{name} is {value!r:.40}, not a number from {least} to {most}")
        if name in _LAYERS and value > tensors:
            raise Problem(f"config.json: {where}{name} is {value}, and the weights have only {tensors} tensors")


def _check_quantization(found: Any) -> None:
    """MLX's own quantisation: a rule for all layers, and rules of single layers."""
    if found is None:
        return
    rules = [found, *(rule for rule in found.values() if isinstance(rule, dict))]
    for rule in rules:
        for name, allowed in (("bits", _BITS), ("group_size", _GROUPS)):
            value = rule.get(name)
            said = name in rule or rule is found
            if said and (not isinstance(value, int) or value not in allowed):
                raise Problem(f"config.json: quantization: {name} is {value!r:.40}, not one of {sorted(allowed)}")
