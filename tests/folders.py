"""Model folders that pass every check and hold no model: headers of sparse weights, a tokenizer in outline."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

TOKENIZER = '{"model": {"type": "BPE", "vocab": {}, "merges": []}}'


def write_weights(file: Path, size: int = 512, *, tensor: str = "model.embed_tokens.weight") -> Path:
    """A safetensors file of `size` bytes in all, at least 264, without content."""
    spare = 256
    data = max(0, size - 8 - spare)
    text = json.dumps({tensor: {"dtype": "U8", "shape": [data], "data_offsets": [0, data]}})
    with file.open("wb") as handle:
        handle.write(struct.pack("<Q", spare) + text.ljust(spare).encode())
        os.truncate(handle.fileno(), 8 + spare + data)
    return file


def safetensors(tensor: str, data: bytes) -> bytes:
    """A whole file with one tensor of bytes."""
    header = json.dumps({tensor: {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


def write_folder(folder: Path, config: dict[str, Any] | None = None, *, weight_bytes: int = 512) -> Path:
    """A folder that is inspected as a chat model, or as what `config` says."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"} if config is None else config))
    (folder / "tokenizer.json").write_text(TOKENIZER)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (folder / "preprocessor_config.json").write_text("{}")
    write_weights(folder / "model.safetensors", weight_bytes)
    return folder
