"""Messages between a service and its picture child (`duet.channel`)."""

from __future__ import annotations

import msgspec


class Measure(msgspec.Struct, frozen=True, tag="measure"):
    """How large is this picture? Only its header is read."""

    id: str
    data: bytes


class Decode(msgspec.Struct, frozen=True, tag="decode"):
    """Which pixels does this picture have?"""

    id: str
    data: bytes


class Measured(msgspec.Struct, frozen=True, tag="measured"):
    """The size by the picture's header, in pixels."""

    id: str
    width: int
    height: int


class Pixels(msgspec.Struct, frozen=True, tag="pixels"):
    """The picture as a model sees it: upright, in sRGB, over white. `rgb` has three bytes a pixel, row by row."""

    id: str
    width: int
    height: int
    rgb: bytes


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The picture cannot be read, or is too large; `message` says why, as a sentence about the picture."""

    id: str
    message: str


Question = Measure | Decode
Answer = Measured | Pixels | Refused
