"""Samples as a WAV file in memory: the form in which services send each other clips."""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np

from speech.splitter import SAMPLE_RATE


def as_wav(samples: np.ndarray[Any, np.dtype[Any]]) -> bytes:
    """Mono 16 kHz samples, int16 or float32 in [-1, 1] (values beyond are clipped), as 16-bit PCM."""
    if samples.dtype != np.int16:
        samples = np.round(np.clip(samples, -1.0, 1.0) * 32767)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()
