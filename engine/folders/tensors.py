"""The header of a safetensors file, checked before anything is allocated (https://huggingface.co/docs/safetensors)."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec

from engine.folders.reading import Problem, open_regular, refuse_stand_in

HEADER_BYTES: Final = 100_000_000
"""The format's own bound of a header."""
_Natural = Annotated[int, msgspec.Meta(ge=0)]
_BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8, "F4": 4,
    "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class _Tensor(msgspec.Struct):
    dtype: str
    shape: Annotated[list[_Natural], msgspec.Meta(max_length=16)]
    data_offsets: tuple[_Natural, _Natural]


@dataclass(frozen=True)
class Header:
    """A file's header as it lies there, and where each tensor's bytes begin and end in the file."""

    raw: bytes
    size: int
    places: dict[str, tuple[int, int]]


def read_header(path: Path) -> Header:
    """The header of a whole file. Raises `Problem` if the file does not hold exactly what its header says."""
    with open_regular(path) as handle:
        try:
            size, beginning = path.stat().st_size, handle.read(512)
            refuse_stand_in(path.name, beginning)
            length = struct.unpack("<Q", beginning[:8])[0] if len(beginning) >= 8 else 0
            if not 2 <= length <= min(HEADER_BYTES, size - 8):
                raise _damaged(path, f"its header would have {length} bytes")
            handle.seek(8)
            raw = handle.read(length)
        except OSError as error:
            raise Problem(f"{path.name} cannot be read: {error.strerror or error}") from error
    places = _places(path, raw, 8 + length)
    end = max((end for _, end in places.values()), default=8 + length)
    if end != size:
        raise Problem(f"{path.name} has {size} bytes instead of {end}: download it again")
    return Header(raw, size, places)


def _places(path: Path, raw: bytes, base: int) -> dict[str, tuple[int, int]]:
    """Where the tensors lie. They must follow one another without gap or overlap."""
    try:
        found = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        found.pop("__metadata__", None)
        tensors = {name: msgspec.json.decode(entry, type=_Tensor) for name, entry in found.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        start, end = tensor.data_offsets
        if start != position or end < start:
            raise _damaged(path, f"tensor {name[:100]!r} does not begin where the one before it ends")
        if tensor.dtype not in _BITS:
            raise _damaged(path, f"tensor {name[:100]!r} has the unknown type {tensor.dtype[:20]!r}")
        if math.prod(tensor.shape) * _BITS[tensor.dtype] != 8 * (end - start):
            raise _damaged(path, f"tensor {name[:100]!r} has {end - start} bytes, which its shape contradicts")
        position = end
    return {name: (base + tensor.data_offsets[0], base + tensor.data_offsets[1]) for name, tensor in tensors.items()}


def _damaged(path: Path, why: str) -> Problem:
    return Problem(f"{path.name} is not a whole safetensors file ({why}): download it again")
