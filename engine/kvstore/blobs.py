"""Bytes of KV in files and back. Without MLX, so that it can run on a thread of its own.

A file is plain safetensors (https://huggingface.co/docs/safetensors). Its metadata holds a CRC-32 of the header, of all data and
of every tensor, so that damage is found wherever it is, and the damaged tensor can be named.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

HEADER_CRC: Final = "header_crc32"
DATA_CRC: Final = "data_crc32"
MAX_HEADER_BYTES: Final = 16 << 20
PIECE_BYTES: Final = 4 << 20
_EMPTY: Final = "0" * 8


class Corrupt(Exception):
    """The file is not what was written. Treat it as missing."""


@dataclass(frozen=True)
class Tensor:
    """`dtype` is safetensors' name of the type. `data` are its bytes, row-major, little-endian. They keep their owner alive."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


Tensors = Mapping[str, Tensor]


def size(tensors: Tensors, facts: Mapping[str, str]) -> int:
    """About the bytes of the file, and never fewer: the header's size is estimated."""
    return sum(tensor.data.nbytes + 192 for tensor in tensors.values()) + sum(map(len, facts.values())) + 512


def write(path: Path, tensors: Tensors, facts: Mapping[str, str], *, pause: Callable[[], None] | None = None) -> int:
    """Write under another name, then rename: a reader sees the whole file or none. Returns its size. Raises OSError.

    There is no fsync: a power cut may leave a file whose checksum fails, and that is a miss. `pause` is called after every
    `PIECE_BYTES`, so that more urgent work can go first.
    """
    head = _header(tensors, facts)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            since_pause = 0
            for view in (
                memoryview(struct.pack("<Q", len(head)) + head),
                *(tensor.data for tensor in tensors.values()),
            ):
                view = view.cast("B")
                while view:
                    count = file.write(view[: PIECE_BYTES - since_pause])
                    view, since_pause = view[count:], since_pause + count
                    if since_pause >= PIECE_BYTES:
                        since_pause = 0
                        if pause is not None:
                            pause()
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return 8 + len(head) + sum(tensor.data.nbytes for tensor in tensors.values())


def will_need(path: Path) -> None:
    """Ask the kernel to start reading the file (not possible on macOS). A file that is gone is no error here."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, as views of one buffer, and the facts. Raises `Corrupt` for every way a file can be wrong, including that it
    is gone or cannot be read."""
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0]
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise Corrupt(f"{path.name}: the header claims {length} bytes")
            head = file.read(length)
            header: dict[str, Any] = json.loads(head)
            facts: dict[str, str] = header.pop("__metadata__")
            _check_header(path, head, facts)
            data = np.empty(size - 8 - length, dtype=np.uint8)
            _read_all(file, data.data, path)
        # One checksum over all data: the interpreter's lock is released once, not once for each tensor.
        if f"{zlib.crc32(data.data):08x}" != facts[DATA_CRC]:
            raise Corrupt(f"{path.name}: {_damaged(header, data, facts)}")
        found = {name: _tensor(path, name, entry, data) for name, entry in header.items()}
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Corrupt(f"{path.name}: {type(error).__name__}: {error}") from error
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end != data.nbytes:
        raise Corrupt(f"{path.name}: {data.nbytes} bytes of data instead of {end}")
    own = {
        name: value
        for name, value in facts.items()
        if name not in (HEADER_CRC, DATA_CRC) and not name.startswith("crc32.")
    }
    return found, own


def _header(tensors: Tensors, facts: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {}
    sums: dict[str, str] = {}
    offset = total = 0
    for name, tensor in tensors.items():
        size = tensor.data.nbytes
        entries[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        sums[f"crc32.{name}"] = f"{zlib.crc32(tensor.data):08x}"
        total = zlib.crc32(tensor.data, total)
        offset += size
    entries["__metadata__"] = {HEADER_CRC: _EMPTY, DATA_CRC: f"{total:08x}", **sums, **facts}
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return _with_crc(head, _EMPTY, f"{zlib.crc32(head):08x}")


def _with_crc(head: bytes, old: str, new: str) -> bytes:
    stem = f'"{HEADER_CRC}":"'.encode()
    return head.replace(stem + old.encode(), stem + new.encode(), 1)


def _check_header(path: Path, head: bytes, facts: Mapping[str, str]) -> None:
    found = facts[HEADER_CRC]
    if f"{zlib.crc32(_with_crc(head, found, _EMPTY)):08x}" != found:
        raise Corrupt(f"{path.name}: the header's checksum is wrong")


def _damaged(header: Mapping[str, Any], data: Any, facts: Mapping[str, str]) -> str:
    """Which part of the data is not what was written, in words."""
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        if f"{zlib.crc32(memoryview(data)[start:end]):08x}" != facts[f"crc32.{name}"]:
            return f"the checksum of {name} is wrong"
    return "the checksum of its data is wrong"


def _tensor(path: Path, name: str, entry: dict[str, Any], data: Any) -> Tensor:
    start, end = entry["data_offsets"]
    if not 0 <= start <= end <= data.nbytes:
        raise Corrupt(f"{path.name}: {name} lies outside of the file")
    return Tensor(entry["dtype"], tuple(entry["shape"]), memoryview(data)[start:end])


def _read_all(file: Any, view: memoryview, path: Path) -> None:
    while view:
        got = file.readinto(view)
        if not got:
            raise Corrupt(f"{path.name}: it is cut short")
        view = view[got:]
