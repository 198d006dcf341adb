"""Which files of a folder are its weights. Beside them may lie copies, adapters, sidecars and other programs' files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.folders.reading import Problem, check_regular, read_object
from engine.folders.tensors import Header, read_header

INDEX: Final = "model.safetensors.index.json"
_SHARD: Final = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.safetensors")
_NO_WEIGHTS: Final = re.compile(
    r"(adapter|lora|optimizer|consolidated|scheduler|training).*|.*[-_.](lora|adapters?)\.safetensors", re.IGNORECASE
)
_COPY: Final = re.compile(r"( \d+| copy( \d+)?|\(\d+\)|[.-]fp\d+|[.-]bf16)\.safetensors$", re.IGNORECASE)
_UNFINISHED: Final = (".part", ".partial", ".incomplete", ".download", ".crdownload", ".icloud", ".tmp", ".aria2")
_OTHER_FORMATS: Final = {
    ".gguf": "GGUF is for llama.cpp",
    ".bin": "a pickle can run code, so it is never opened",
    ".pt": "a pickle can run code, so it is never opened",
    ".pth": "a pickle can run code, so it is never opened",
    ".pkl": "a pickle can run code, so it is never opened",
    ".ckpt": "a pickle can run code, so it is never opened",
    ".npz": "it is an old format of MLX",
    ".npy": "it is no format of weights here",
    ".h5": "Keras's format can hold code",
    ".keras": "Keras's format can hold code",
    ".msgpack": "it is Flax's format",
    ".onnx": "it is for ONNX Runtime",
    ".mlmodelc": "it is for Core ML",
    ".mlpackage": "it is for Core ML",
}  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """The files that hold the weights, by name. `by_index`: the folder's index lists them. `left_out` lie beside them."""

    headers: Mapping[str, Header]
    by_index: bool
    left_out: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(header.size for header in self.headers.values())

    @property
    def tensors(self) -> int:
        return sum(len(header.places) for header in self.headers.values())


def is_weights(name: str) -> bool:
    """Whether a name looks like weights: `._model.safetensors` is what macOS keeps beside a file on a foreign disk."""
    return name.endswith(".safetensors") and not name.startswith(".")


def choose(folder: Path, found: Mapping[str, os.stat_result]) -> Weights:
    """The weights of a folder with the entries `found`, every header checked. Raises `Problem` that names the file."""
    there = sorted(name for name in found if is_weights(name))
    if INDEX in found and (listed := _listed(folder, found, there)):
        headers = {name: _header(folder, name, found) for name in listed}
        return Weights(headers, True, tuple(name for name in there if name not in headers))
    headers, taken = {}, set[str]()
    for name in sorted((name for name in there if not _NO_WEIGHTS.fullmatch(name)), key=_order):
        copy_of = _COPY.sub(".safetensors", name)
        if copy_of != name and copy_of in found:
            continue
        header = _header(folder, name, found)
        if not taken & header.places.keys():  # else it holds again what another file holds
            headers[name] = header
            taken |= header.places.keys()
    if not headers:
        raise _without_weights(found, there)
    _require(_siblings(headers), found, "a shard beside it implies it")
    return Weights(headers, False, tuple(name for name in there if name not in headers))


def _listed(folder: Path, found: Mapping[str, os.stat_result], there: list[str]) -> list[str]:
    """The files that the index lists. Empty when none of them is there and others are: the index was left by a conversion."""
    weight_map = read_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(it, str) for it in weight_map.values()):
        raise Problem(f"{INDEX} lists no files: download it again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if "/" in name or "\\" in name or "\0" in name or not is_weights(name):
            raise Problem(f"{INDEX} lists {name[:100]!r}, which is outside of the folder or holds no weights")
    if not any(name in found for name in names) and any(not _NO_WEIGHTS.fullmatch(name) for name in there):
        return []
    _require(names, found, "the index lists it")
    return names


def _require(names: Iterable[str], found: Mapping[str, os.stat_result], why: str) -> None:
    missing = sorted(name for name in names if name not in found)
    if not missing:
        return
    parts = [name for name in found if name.endswith(_UNFINISHED) and missing[0].partition(".")[0] in name]
    cause = f"{parts[0]} is not complete" if parts else f"{why}"
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    raise Problem(f"{missing[0]}{more} missing, though {cause}: download it again")


def _header(folder: Path, name: str, found: Mapping[str, os.stat_result]) -> Header:
    check_regular(name, found[name])
    return read_header(folder / name)


def _order(name: str) -> tuple[bool, bool, bool, str]:
    """The file that is most likely the weights comes first; a copy comes last."""
    return (bool(_COPY.search(name)), name != "model.safetensors", not name.startswith("model"), name)


def _siblings(names: Iterable[str]) -> set[str]:
    """The names of all shards of the sets that `names` belong to."""
    wanted: set[str] = set()
    for name in names:
        if shard := _SHARD.fullmatch(name):
            count = int(shard["count"])
            wanted |= {f"{shard['stem']}-{i:05}-of-{count:05}.safetensors" for i in range(1, min(count, 10_000) + 1)}
    return wanted


def _without_weights(found: Mapping[str, os.stat_result], there: list[str]) -> Problem:
    """The reason why a folder has no weights, by what lies there instead."""
    named = sorted(name for name in found if not name.startswith("._"))
    unfinished = [name for name in named if name.endswith(_UNFINISHED)]
    if adapters := [name for name in there if name.startswith(("adapter", "lora"))]:
        return Problem(f"{adapters[0]} is an adapter, which does not run alone: merge it into its model")
    if "adapter_config.json" in found:
        return Problem("adapter_config.json: this is an adapter, which does not run alone: merge it into its model")
    if unfinished:
        return Problem(f"{unfinished[0]}: the folder has no *.safetensors, its download is not complete")
    if there:
        return Problem(f"{there[0]} is no file of weights for this engine: the folder has no other *.safetensors")
    for name in named:
        if reason := _OTHER_FORMATS.get(os.path.splitext(name)[1].lower()):  # noqa: PTH122 - a name, not a path
            return Problem(f"{name}: the folder has no *.safetensors, and {reason}: use a copy in safetensors")
    return Problem("the folder has no *.safetensors: it is no MLX or Hugging Face model, or not complete")
