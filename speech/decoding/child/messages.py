"""Messages between a service and the child process that decodes. Paths are bytes, as the file system has them."""

from __future__ import annotations

from typing import Literal

import msgspec

Channels = Literal["mix", "each"]


class Decode(msgspec.Struct, frozen=True, tag="decode"):
    """Decode `path` into `target`; with "each", into `target` and a number for each channel."""

    id: str
    path: bytes
    target: bytes
    max_seconds: float
    channels: Channels


class Probe(msgspec.Struct, frozen=True, tag="probe"):
    """Read the header of `path`."""

    id: str
    path: bytes


class Decoded(msgspec.Struct, frozen=True, tag="decoded"):
    """See `speech.decoding.decoder.Decoded`."""

    id: str
    seconds: float
    files: tuple[bytes, ...]
    truncated: str | None
    notes: tuple[str, ...]


class Probed(msgspec.Struct, frozen=True, tag="probed"):
    """The declared duration; None when the file does not say."""

    id: str
    seconds: float | None


class DecodeFailed(msgspec.Struct, frozen=True, tag="decode_failed"):
    """`fault`: the file's, the disk's, or the memory's."""

    id: str
    fault: Literal["file", "disk", "memory"]
    message: str
