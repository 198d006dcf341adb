"""The metadata of an ONNX file, read without loading the model.

sherpa-onnx ends the process when a model lacks metadata that it expects, so we check first. The file is a protobuf message
(`ModelProto` of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). Only its top level is read; weights are skipped.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

_METADATA_PROPS = 14
_KEY, _VALUE = 1, 2
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5

Buffer = mmap.mmap | bytes


class NotOnnx(ValueError):
    """The file is not an ONNX model, or is cut short."""


def read(path: Path) -> dict[str, str]:
    """Metadata by key. Raises `NotOnnx`, or OSError when the file cannot be read."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise NotOnnx(f"{path.name} is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                entries = [value for field, value in _fields(data) if field == _METADATA_PROPS]
                return dict(_entry(entry) for entry in entries)
            except (IndexError, UnicodeDecodeError) as error:
                raise NotOnnx(f"{path.name} is no ONNX model, or is cut short") from error


def require(path: Path, keys: frozenset[str], *, kind: str) -> dict[str, str]:
    """The metadata of a model that must have `keys`. Raises ValueError naming what is missing."""
    found = read(path)
    if missing := sorted(keys - found.keys()):
        raise ValueError(f"{path.name} is no {kind}: its metadata lacks {', '.join(missing)}")
    return found


def _entry(message: bytes) -> tuple[str, str]:
    parts = dict(_fields(message))
    return parts.get(_KEY, b"").decode(), parts.get(_VALUE, b"").decode()


def _fields(data: Buffer) -> Iterator[tuple[int, bytes]]:
    """Number and content of each length-delimited field that we need; the graph with its weights is skipped.

    Raises IndexError where the message breaks off or is not protobuf.
    """
    at, size = 0, len(data)
    while at < size:
        tag, at = _varint(data, at)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            _, at = _varint(data, at)
        elif wire_type == _BYTES:
            length, at = _varint(data, at)
            if at + length > size:
                raise IndexError(field)
            if field == _METADATA_PROPS or isinstance(data, bytes):
                yield field, bytes(data[at : at + length])
            at += length
        elif wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if wire_type == _EIGHT_BYTES else 4
        else:
            raise IndexError(wire_type)
    if at > size:
        raise IndexError(at)


def _varint(data: Buffer, at: int) -> tuple[int, int]:
    """A number written in seven bits a byte, and the position after it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError(at)
