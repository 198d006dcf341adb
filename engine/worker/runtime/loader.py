"""A model folder becomes a model in memory. No other file calls the libraries' loaders.

Folders are in Hugging Face's layout: config.json, *.safetensors, a tokenizer. Nothing is fetched from a network. No code of a
folder is run: `view` keeps it from the libraries, and `wall` from the process.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from engine.folders.inspection import Contents, read
from engine.folders.reading import Problem, read_object
from engine.folders.settings import MODEL_TYPE_OF_RECOGNISERS
from engine.worker.model import Loaded
from engine.worker.runtime.layout import lay_out
from engine.worker.runtime.view import shown_to_libraries
from engine.worker.runtime.wall import no_code_of
from speech.splitter import SAMPLE_RATE

logger = logging.getLogger(__name__)

# These count positions from the padding token's id + 1 on, as fairseq does: that many positions cannot be used.
_POSITIONS_AFTER_PADDING = frozenset({"xlm-roberta", "roberta", "camembert"})


class LoadError(Exception):
    """The folder cannot be served. The message says why and what to do."""


def load(path: Path, role: str) -> Loaded:
    """Load `path` as `role`: "chat" (text and vision), "embedding" or "asr". Raises `LoadError`."""
    try:
        contents = read(path)
        with shown_to_libraries(path, contents) as view, no_code_of(path, view):
            return _load(view, path.name, role, contents)
    except Problem as error:
        raise LoadError(f"{path.name}: {error}") from error
    except OSError as error:
        raise LoadError(f"{path.name} cannot be read: {error}") from error


def _load(view: Path, name: str, role: str, contents: Contents) -> Loaded:
    """Load what libraries may see of the folder `name`. Raises `LoadError`."""
    config = dict(contents.config)
    loader = {"chat": _load_chat, "embedding": _load_embedding, "asr": _load_asr}[role]
    try:
        loaded = loader(view, config, contents.weights.bytes)
        lay_out(loaded.model, generates=role != "embedding")
    except LoadError as error:
        raise LoadError(f"{name}: {error}") from error
    except Exception as error:
        # The libraries raise all kinds of errors: KeyError for a missing setting, ValueError for an unknown type or missing
        # weights.
        cause = _blame(view) or f"{type(error).__name__}: {error}"
        raise LoadError(f"{name} ({config['model_type']}) cannot be loaded as {role}: {cause}") from error
    return loaded


def _blame(view: Path) -> str | None:
    """The file that is at fault, if that can be told."""
    from tokenizers import Tokenizer

    file = view / "tokenizer.json"
    if not file.exists():
        return None
    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises Exception itself
        logger.info("tokenizer.json is at fault", exc_info=error, extra={"action": "tokenizer_unreadable"})
        return f"tokenizer.json cannot be read ({error}): download it again"
    return None


def _load_chat(path: Path, config: dict[str, Any], weight_bytes: int) -> Loaded:
    from mlx_vlm.utils import load as load_model

    model, processor = load_model(str(path))
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise LoadError("its tokenizer has no fast form (tokenizer.json)")
    # A limit in the tokenizer's file would cut prompts without a word.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    if not hasattr(model, "language_model"):
        raise LoadError(f"{config.get('model_type')} is not a model that generates text")
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
        raise LoadError("it gives no single vector for a text: it is no embedding model of ours")
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
    limits = [positions, _first(read_object(trained), "max_seq_length") if trained.is_file() else None]
    return min((limit for limit in limits if limit is not None), default=None)


def _load_asr(path: Path, config: dict[str, Any], weight_bytes: int) -> Loaded:
    from mlx_audio.stt import load as load_stt

    if config.get("model_type") != MODEL_TYPE_OF_RECOGNISERS:
        raise LoadError(f"{config.get('model_type')} does not transcribe here: Qwen3-ASR does")
    # The library's default is strict=False, which leaves missing weights random.
    model = load_stt(str(path), strict=True)
    _hear_silence(model)
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


def _hear_silence(model: Any) -> None:
    """Draw one token for a moment of silence. What makes features of sound is told only by how the model takes them: settings
    that do not fit the weights would fail every request. Raises `LoadError`."""
    try:
        next(iter(model.stream_generate(np.zeros(SAMPLE_RATE // 10, np.float32), max_tokens=1)), None)
    except Exception as error:
        raise LoadError(
            f"it cannot take any sound, since config.json or preprocessor_config.json does not fit the weights "
            f"({type(error).__name__}: {error}): download the folder again"
        ) from error


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
        sources.append(read_object(path / "generation_config.json"))
    found: set[int] = set()
    for value in [tokenizer.eos_token_id, *(source.get("eos_token_id") for source in sources)]:
        found |= {value} if isinstance(value, int) else set(value or ())
    return frozenset(found)
