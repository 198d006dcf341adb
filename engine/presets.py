"""How models share a machine, by its size: how much memory they may take, and which of them stay. A table, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

GIB: Final = 1 << 30
LARGE_BYTES: Final = 4 * GIB
"""A chat model that needs this much counts as large."""


@dataclass(frozen=True)
class Preset:
    """How models share a machine.

    `share` of its memory is for models. Models for the `resident` roles are loaded at start if they are here. With
    `one_large` a large model leaves before another one loads. With `asr_yields` an idle recogniser leaves before a large
    model loads. `spare`: a worker process waits with everything imported."""

    share: float
    resident: tuple[str, ...] = ("embedding", "asr")
    one_large: bool = False
    asr_yields: bool = False
    spare: bool = True


PRESETS: Final[Mapping[str, Preset]] = {
    "16gb": Preset(share=0.70, one_large=True, asr_yields=True, spare=False),
    "32gb": Preset(share=0.75),
    "64gb": Preset(share=0.80),
}


def preset_for(memory_bytes: int) -> str:
    """The name of the preset by physical memory: `16gb`, `32gb` or `64gb`."""
    gibibytes = memory_bytes / GIB
    return "64gb" if gibibytes >= 60 else "32gb" if gibibytes >= 30 else "16gb"
