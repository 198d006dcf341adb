"""A name for weights, made without reading all of them."""

from __future__ import annotations

import hashlib
import json
import struct
from importlib.metadata import version
from pathlib import Path
from typing import Final

SAMPLE_BYTES: Final = 1024
_CONFIGS: Final = ("config.json", "preprocessor_config.json", "processor_config.json")


def fingerprint(folder: Path) -> str:
    """A hex digest of what decides a model's KV: its weights, its configuration and the version of the code that runs it.

    A file of the hub's cache is named after its content, so its name counts. For any other file its size, time, header and
    samples of every tensor count: another copy of the same weights may be a miss, but other weights are never a hit. Raises
    `OSError`.
    """
    digest = hashlib.sha256(f"mlx-vlm {version('mlx-vlm')}".encode())
    for name in _CONFIGS:
        file = folder / name
        if file.is_file():
            digest.update(f"\0{name}\0".encode() + file.read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"\0{file.name}\0".encode())
        real = file.resolve()
        if file.is_symlink() and real.parent.name == "blobs":
            digest.update(f"{real.name} {real.stat().st_size}".encode())
        else:
            _sample(digest, real)
    return digest.hexdigest()


def _sample(digest: hashlib._Hash, file: Path) -> None:
    found = file.stat()
    digest.update(struct.pack("<QQ", found.st_size, found.st_mtime_ns))
    with file.open("rb") as handle:
        length = struct.unpack("<Q", handle.read(8))[0]
        header = handle.read(length)
        digest.update(header)
        for name, tensor in json.loads(header).items():
            if name == "__metadata__":
                continue
            start, end = tensor["data_offsets"]
            for place in (start, max(start, end - SAMPLE_BYTES)):
                handle.seek(8 + length + place)
                digest.update(handle.read(min(SAMPLE_BYTES, end - start)))
