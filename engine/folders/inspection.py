"""What a folder is good for, and what is wrong with it. Everything here works on any folder and runs nothing of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.folders import settings
from engine.folders.reading import TOKENIZER_BYTES, Problem, check_regular, entries, read_bytes, read_object
from engine.folders.templates import read_template
from engine.folders.weights import Weights, choose, is_weights
from engine.types import Role

logger = logging.getLogger(__name__)

_ENCODERS: Final = frozenset({"bert", "modernbert", "xlm-roberta", "roberta", "distilbert", "nomic_bert", "gte", "new"})
_SETTINGS: Final = (
    "tokenizer_config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


@dataclass(frozen=True)
class Inspection:
    """A folder's roles and the bytes of its weights, or its `problem`: then it cannot be used. `left_out` are files that look
    like weights and are not the model's."""

    roles: tuple[Role, ...] = ()
    weight_bytes: int = 0
    problem: str | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contents:
    """A folder that can be loaded, as it was read. `template` is its chat template."""

    config: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    files: Mapping[str, os.stat_result]
    weights: Weights
    template: str | None
    roles: tuple[Role, ...]


def inspect(folder: Path, name: str | None = None) -> Inspection:
    """What a folder holds. `name` is the model's, by default the folder's. Raises nothing: whatever goes wrong is the folder's
    problem."""
    try:
        found = read(folder, name)
    except Problem as error:
        return Inspection(problem=str(error))
    except OSError as error:
        return Inspection(problem=f"the folder cannot be read: {error.strerror or error}")
    except Exception as error:
        logger.exception("a folder could not be examined", extra={"action": "folder_failed", "folder": folder.name})
        return Inspection(problem=f"the folder cannot be examined ({type(error).__name__}): the engine's log says more")
    return Inspection(found.roles, found.weights.bytes, None, found.weights.left_out)


def read(folder: Path, name: str | None = None) -> Contents:
    """The contents of a folder that can be loaded. Raises `Problem` and `OSError`."""
    files = entries(folder)
    if "config.json" not in files:
        choose(folder, files)  # an adapter, another format, an unfinished download: the better reason
        raise Problem("config.json is missing: download the folder again")
    config = read_object(folder / "config.json")
    weights = choose(folder, files)
    kind = settings.check_config(config, tensors=weights.tensors)
    others = {file: read_object(folder / file) for file in _SETTINGS if file in files}
    tokenizer = others.get("tokenizer_config.json", {})
    name = (name or folder.name).lower()
    embeds = _embeds(kind, name, files)
    settings.check_architecture(config, kind, embeds=embeds)
    settings.check_tokenizer(files, tokenizer)
    _check_token_lists(folder, files)
    template = read_template(folder, files, tokenizer)
    roles: tuple[Role, ...] = ("embedding",) if embeds else _roles(config, kind, name, files, template)
    return Contents(config, tokenizer, files, weights, template, roles)


def _embeds(kind: str, name: str, files: Mapping[str, os.stat_result]) -> bool:
    if kind == settings.MODEL_TYPE_OF_RECOGNISERS:
        return False
    return "modules.json" in files or "1_Pooling" in files or kind in _ENCODERS or "embed" in name


def _roles(
    config: Mapping[str, Any], kind: str, name: str, files: Mapping[str, os.stat_result], template: str | None
) -> tuple[Role, ...]:
    """The roles of what is no embedding model. A model of text without a chat template only completes texts."""
    if kind == settings.MODEL_TYPE_OF_RECOGNISERS:
        if "preprocessor_config.json" not in files:
            raise Problem(
                "preprocessor_config.json is missing: without it no sound can be read; download the folder again"
            )
        return ("asr",)
    if config.get("vision_config") is None:
        return ("chat",) if template else ("completions",)
    return ("ocr", "vision") if "ocr" in name or "ocr" in kind else ("chat", "vision")


def _check_token_lists(folder: Path, files: Mapping[str, os.stat_result]) -> None:
    """Raises `Problem` for a list of tokens that is none. Only its outline is read here: it may be large."""
    for name in ("tokenizer.model", "merges.txt", "vocab.txt"):
        if name in files:
            check_regular(name, files[name])
    if "vocab.json" in files:
        _outline("vocab.json", read_bytes(folder / "vocab.json", TOKENIZER_BYTES))
    if "tokenizer.json" in files:
        outline = _outline("tokenizer.json", read_bytes(folder / "tokenizer.json", TOKENIZER_BYTES))
        if not bytes(outline.get("model", msgspec.Raw(b""))).lstrip().startswith(b"{"):
            raise Problem("tokenizer.json is no tokenizer (it has no model): download it again")


def _outline(name: str, data: bytes) -> dict[str, msgspec.Raw]:
    """The members of a large JSON object, unread."""
    try:
        return msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"), type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(f"{name} is not a JSON object ({error}): download it again") from error


def looks_like_a_model(files: Mapping[str, os.stat_result]) -> bool:
    """Whether a folder is meant as a model, and not as something else that lies among models."""
    wanted = ("config.json", "adapter_config.json")
    return any(name in wanted or is_weights(name) or name.endswith(".gguf") for name in files)
