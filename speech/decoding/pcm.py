"""Decoded audio on disk: signed 16-bit little-endian, mono, 16 kHz, without a header."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from speech.splitter import SAMPLE_RATE

BYTES_PER_SECOND = 2 * SAMPLE_RATE


def open_pcm(path: Path) -> np.ndarray[Any, np.dtype[np.int16]]:
    """The samples as a read-only memory map: hours of audio take no memory until they are looked at."""
    if path.stat().st_size == 0:
        return np.zeros(0, np.int16)
    return np.memmap(path, dtype="<i2", mode="r")
