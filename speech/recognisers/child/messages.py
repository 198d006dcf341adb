"""Messages between a service and the child process of a recogniser."""

from __future__ import annotations

import msgspec

from duet.wire import Segment


class Recognise(msgspec.Struct, frozen=True, tag="recognise"):
    """Recognise `clips`: float32 little-endian mono at 16 kHz.

    `itn` (inverse text normalisation): the model writes numbers as digits and sets punctuation.
    """

    id: str
    clips: tuple[bytes, ...]
    itn: bool = True


class Recognised(msgspec.Struct, frozen=True, tag="recognised"):
    """One segment a clip, times from the clip's start."""

    id: str
    segments: tuple[Segment, ...]


class RecogniseFailed(msgspec.Struct, frozen=True, tag="recognise_failed"):
    id: str
    message: str
