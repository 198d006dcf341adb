"""Entries of KV whose content follows from their name, and a directory to put them into."""

from __future__ import annotations

import hashlib
from pathlib import Path

from engine.kvstore import blobs
from engine.kvstore.directory import Directory, Limits
from engine.kvstore.index import Entry

ABOUT = {"model": "m"}
ROOMY = Limits(disk_bytes=1 << 30, write_bytes_a_day=1 << 34, free_bytes=0)


def key_of(name: object) -> bytes:
    return hashlib.sha256(str(name).encode()).digest()


def entry(name: object, *, parent: bytes = b"root", tokens: bytes = b"", start: int = 0, tip: bool = False) -> Entry:
    tokens = tokens or str(name).encode().ljust(8, b"\0")[:8]
    return Entry(key_of(name), "block", parent, start, start + len(tokens) // 4, tokens, (), 0, 1.0, tip)


def content(name: object, size: int = 4000) -> dict[str, blobs.Tensor]:
    data = (str(name).encode() * size)[:size]
    return {"0.k": blobs.Tensor("U8", (size,), memoryview(data))}


def add(found: Directory, name: object, size: int = 4000) -> bool:
    return found.add(entry(name), content(name, size), {"fact": "1"}) is not None


def holds(found: Directory, name: object, size: int = 4000) -> bool:
    read = found.read(key_of(name))
    return read is not None and bytes(read[0]["0.k"].data) == bytes(content(name, size)["0.k"].data)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("files/*/*") if path.is_file()]
