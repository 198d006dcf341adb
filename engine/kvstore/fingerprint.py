"""A name for weights, made without reading all of them."""

from __future__ import annotations

import hashlib
import struct
from importlib.metadata import version
from pathlib import Path
from typing import Final

from engine.folders.reading import CONFIG_BYTES, entries, open_regular, read_bytes
from engine.folders.tensors import Header
from engine.folders.weights import choose

SAMPLE_BYTES: Final = 1024
_CONFIGS: Final = ("config.json", "preprocessor_config.json", "processor_config.json")


def fingerprint(folder: Path) -> str:
    """A hex digest of what decides a model's KV: its weights, its configuration and the version of the code that runs it.

    A file of the hub's cache is named after its content, so its name counts. For any other file its size, time, header and
    samples of every tensor count: another copy of the same weights may be a miss, but other weights are never a hit. Reads
    regular files only, and a bounded part of each. Raises `OSError`, and `Problem` for files that are damaged.
    """
    digest = hashlib.sha256(f"mlx-vlm {version('mlx-vlm')}".encode())
    found = entries(folder)
    for name in _CONFIGS:
        if name in found:
            digest.update(f"\0{name}\0".encode() + read_bytes(folder / name, CONFIG_BYTES))
    for name, header in sorted(choose(folder, found).headers.items()):
        digest.update(f"\0{name}\0".encode())
        file = folder / name
        real = file.resolve()
        if file.is_symlink() and real.parent.name == "blobs":
            digest.update(f"{real.name} {header.size}".encode())
        else:
            _sample(digest, real, header)
    return digest.hexdigest()


def _sample(digest: hashlib._Hash, file: Path, header: Header) -> None:
    digest.update(struct.pack("<QQ", header.size, file.stat().st_mtime_ns) + header.raw)
    with open_regular(file) as handle:
        for start, end in header.places.values():
            for place in (start, max(start, end - SAMPLE_BYTES)):
                handle.seek(place)
                digest.update(handle.read(min(SAMPLE_BYTES, end - start)))
