"""A model folder becomes a model in memory. No other file calls the libraries' loaders.

Folders are in Hugging Face's layout: config.json, *.safetensors, a tokenizer. Nothing is fetched from a network, and no code of a
checkpoint is run (`trust_remote_code` stays off).
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx

from engine.worker.model import Loaded
from engine.worker.runtime.layout import lay_out

# These count positions from the padding token's id + 1 on, as fairseq does: that many positions cannot be used.
_POSITIONS_AFTER_PADDING = frozenset({"xlm-roberta", "roberta", "camembert"})


class LoadError(Exception):
    """The folder cannot be served. The message says why and what to do."""


def load(path: Path, role: str) -> Loaded:
    """Load `path` as `role`: "chat" (text and vision), "embedding" or "asr". Raises `LoadError`."""
    config = _read_json(path / "config.json")
    refuse_code(path, config)
    weight_bytes = check_weights(path)
    loader = {"chat": _load_chat, "embedding": _load_embedding, "asr": _load_asr}[role]
    try:
        loaded = loader(path, config, weight_bytes)
        lay_out(loaded.model, generates=role != "embedding")
    except LoadError:
        raise
    except Exception as error:
        # The libraries raise all kinds of errors: KeyError for a missing setting, ValueError for an unknown type or missing
        # weights.
        kind = config.get("model_type", "no model_type")
        raise LoadError(f"{path.name} ({kind}) cannot be loaded as {role}: {type(error).__name__}: {error}") from error
    return loaded


def refuse_code(path: Path, config: dict[str, Any]) -> None:
    """Raise `LoadError` if loading the folder would run code that is in it.

    mlx-vlm executes the file that `model_file` names, and mlx-audio opens tokenizers with `trust_remote_code`.
    """
    if config.get("model_file"):
        raise LoadError(
            f"{path.name} brings its own code ({config['model_file']}), which is never run: use another copy"
        )
    tokenizer = path / "tokenizer_config.json"
    if tokenizer.is_file() and _read_json(tokenizer).get("auto_map"):
        raise LoadError(f"{path.name} has a tokenizer in code (auto_map), which is never run: use a copy without it")


def check_weights(path: Path) -> int:
    """Bytes of all weight files. Raises `LoadError` if one is missing or cut short, before any memory is used.

    The header of a safetensors file says how long the file must be (https://huggingface.co/docs/safetensors).
    """
    index = path / "model.safetensors.index.json"
    if index.exists():
        listed = _read_json(index).get("weight_map")
        names = sorted(set(map(str, listed.values()))) if isinstance(listed, dict) else []
        if outside := [name for name in names if "/" in name or "\\" in name]:
            raise LoadError(f"{path.name}: the index lists {outside[0]!r}, which is outside of the folder")
        files = [path / name for name in names]
        if missing := [file.name for file in files if not file.exists()]:
            raise LoadError(f"{path.name}: {', '.join(missing)} missing, though the index lists it: download it again")
    else:
        files = sorted(path.glob("*.safetensors"))
    if not files:
        raise LoadError(f"{path.name} has no *.safetensors: it is no MLX or Hugging Face checkpoint, or not complete")
    return sum(_checked_size(file) for file in files)


def _checked_size(file: Path) -> int:
    size = file.stat().st_size
    try:
        with file.open("rb") as handle:
            length = struct.unpack("<Q", handle.read(8))[0]
            header = json.loads(handle.read(length)) if length < min(size, 100 << 20) else None
        tensors = [entry for name, entry in (header or {}).items() if name != "__metadata__"]
        end = max((entry["data_offsets"][1] for entry in tensors), default=-1)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LoadError(f"{file.parent.name}/{file.name} is not a safetensors file: download it again") from error
    if 8 + length + end != size:
        raise LoadError(
            f"{file.parent.name}/{file.name} has {size} bytes instead of {8 + length + end}: download again"
        )
    return size


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LoadError(f"{path.parent.name} has no {path.name}") from error
    except (OSError, ValueError) as error:
        raise LoadError(f"{path.parent.name}/{path.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise LoadError(f"{path.parent.name}/{path.name} is not a JSON object")
    return value


def _load_chat(path: Path, config: dict[str, Any], weight_bytes: int) -> Loaded:
    from mlx_vlm.utils import load as load_model

    model, processor = load_model(str(path))
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise LoadError(f"{path.name}: its tokenizer has no fast form (tokenizer.json)")
    # A limit in the tokenizer's file would cut prompts without a word.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    if not hasattr(model, "language_model"):
        raise LoadError(f"{path.name} ({config.get('model_type')}) is not a model that generates text")
    image_token_id = _first(config, "image_token_id", "image_token_index")
    can_see = config.get("vision_config") is not None and getattr(processor, "image_processor", None) is not None
    return Loaded(
        capabilities=("chat", "vision") if can_see else ("chat",),
        model=model,
        processor=processor,
        tokenizer=tokenizer,
        config=config,
        context=_first({**config, **_text_config(config)}, "max_position_embeddings", "n_positions"),
        weight_bytes=weight_bytes,
        vocabulary=_vocabulary(config, tokenizer),
        eos_ids=_eos_ids(path, config, tokenizer),
        image_token_id=image_token_id if can_see else None,
    )


def _load_embedding(path: Path, config: dict[str, Any], weight_bytes: int) -> Loaded:
    from mlx_vlm.embedding_loader import load_embedding_model
    from mlx_vlm.models.pooling import read_pooling_config
    from transformers import AutoTokenizer

    model = load_embedding_model(path)
    # The library's loader leaves this to its server. Without it, a model that was trained on its first token is averaged.
    # `object.__setattr__` goes past the module's own attribute handling, which would take a dict for parameters.
    object.__setattr__(model, "pooling_config", read_pooling_config(path))
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    # One vector now: a way of pooling that the library lacks is then an error of loading, not of every request.
    probe = model(mx.array([[0]]), attention_mask=mx.array([[1]])).text_embeds
    if probe is None or probe.ndim != 2:
        raise LoadError(f"{path.name} gives no single vector for a text: it is no embedding model of ours")
    return Loaded(
        capabilities=("embedding",),
        model=model,
        processor=tokenizer,
        tokenizer=tokenizer,
        config=config,
        context=_embedding_context(path, config),
        weight_bytes=weight_bytes,
        vocabulary=_vocabulary(config, tokenizer),
        eos_ids=frozenset(),
        image_token_id=None,
    )


def _embedding_context(path: Path, config: dict[str, Any]) -> int | None:
    """The longest input, in tokens: the number of positions, or less if the model was trained on less."""
    positions = _first({**config, **_text_config(config)}, "max_position_embeddings")
    if positions is not None and str(config.get("model_type")).replace("_", "-") in _POSITIONS_AFTER_PADDING:
        positions -= config.get("pad_token_id", 1) + 1
    trained = path / "sentence_bert_config.json"
    limits = [positions, _first(_read_json(trained), "max_seq_length") if trained.is_file() else None]
    return min((limit for limit in limits if limit is not None), default=None)


def _load_asr(path: Path, config: dict[str, Any], weight_bytes: int) -> Loaded:
    from mlx_audio.stt import load as load_stt

    if config.get("model_type") != "qwen3_asr" or "classify_num" in (config.get("thinker_config") or {}):
        raise LoadError(f"{path.name} ({config.get('model_type')}) does not transcribe here: Qwen3-ASR does")
    # The library's default is strict=False, which leaves missing weights random.
    model = load_stt(str(path), strict=True)
    return Loaded(
        capabilities=("asr",),
        model=model,
        processor=None,
        tokenizer=getattr(model, "_tokenizer", None) or getattr(model, "tokenizer", None),
        config=config,
        context=_first(_text_config(config), "max_position_embeddings"),
        weight_bytes=weight_bytes,
        vocabulary=0,
        eos_ids=frozenset(),
        image_token_id=None,
    )


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("text_config") or (config.get("thinker_config") or {}).get("text_config") or {}


def _first(config: dict[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)


def _vocabulary(config: dict[str, Any], tokenizer: Any) -> int:
    return _first({**_text_config(config), **config}, "vocab_size") or len(tokenizer)


def _eos_ids(path: Path, config: dict[str, Any], tokenizer: Any) -> frozenset[int]:
    """Every token id that one of the checkpoint's files names as an end."""
    sources = [config, _text_config(config)]
    if (path / "generation_config.json").exists():
        sources.append(_read_json(path / "generation_config.json"))
    found: set[int] = set()
    for value in [tokenizer.eos_token_id, *(source.get("eos_token_id") for source in sources)]:
        found |= {value} if isinstance(value, int) else set(value or ())
    return frozenset(found)
