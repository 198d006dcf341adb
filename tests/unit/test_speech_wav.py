"""Clips on their way between services."""

from __future__ import annotations

import io
import wave

import numpy as np
import pytest

from speech.wav import as_wav


@pytest.mark.parametrize(
    "samples",
    [
        np.array([0.0, 0.5, -0.5, 1.0, -1.0, 3.0], np.float32),
        np.array([0, 16384, -16384, 32767, -32767, 32767], np.int16),
    ],
)
def test_both_kinds_of_samples_become_the_same_file(samples: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
    with wave.open(io.BytesIO(as_wav(samples))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 2, 16_000, 6)
        found = np.frombuffer(file.readframes(6), "<i2")
    np.testing.assert_allclose(found, [0, 16384, -16384, 32767, -32767, 32767], atol=1)
