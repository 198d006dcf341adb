"""Where someone speaks: silero's model through sherpa-onnx."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import models
from duet.errors import Unavailable
from speech.splitter import SAMPLE_RATE, Span

MODEL = models.EMBEDDED / "silero-vad" / "silero_vad_16k_op15.onnx"
MODEL_SHA256 = "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49"
"""sherpa-onnx ends the process when the VAD model is a wrong file, and nothing can catch that: so the file is pinned."""
WINDOW = 512
"""sherpa's detector must get exactly this many samples a call; larger pieces silently give wrong spans."""

MAX_IDLE = 2
_Settings = tuple[float, float, float]
_IDLE: dict[_Settings, deque[Any]] = {}
"""Detectors between two uses. Making one takes 33 ms, a large part of the time for a short clip. A deque's ends are
thread-safe."""


class VadUnavailable(Unavailable):
    """The VAD model's file is missing or is not the pinned one."""


def detect(
    samples: np.ndarray[Any, np.dtype[Any]],
    *,
    threshold: float = 0.5,
    min_silence_seconds: float = 0.25,
    min_speech_seconds: float = 0.2,
    on_progress: Callable[[float], None] | None = None,
) -> list[Span]:
    """Spans of speech in mono 16 kHz audio (float32 in [-1, 1] or int16), in order and without overlap.

    `on_progress` is called with the seconds seen so far. CPU time is about 1% of the audio's.
    """
    settings = (threshold, min_silence_seconds, min_speech_seconds)
    detector = _borrow(settings)
    spans: list[Span] = []
    total = len(samples)
    for start in range(0, total, WINDOW):
        block = _as_float(samples[start : start + WINDOW])
        if len(block) < WINDOW:
            block = np.pad(block, (0, WINDOW - len(block)))
        detector.accept_waveform(block)
        spans += _take(detector, total)
        if on_progress and start % (WINDOW * 312) == 0:  # every ten seconds
            on_progress(start / SAMPLE_RATE)
    detector.flush()
    spans += _take(detector, total)
    # Not in a `finally`: after an error the detector's state is unknown, so it is dropped.
    _give_back(settings, detector)
    return spans


def _borrow(settings: _Settings) -> Any:
    """A detector for this call alone: an idle one, or a new one."""
    try:
        return _IDLE[settings].pop()
    except (KeyError, IndexError):
        return _create(*settings)


def _give_back(settings: _Settings, detector: Any) -> None:
    detector.reset()
    _IDLE.setdefault(settings, deque(maxlen=MAX_IDLE)).append(detector)


def _create(threshold: float, min_silence_seconds: float, min_speech_seconds: float) -> Any:
    import sherpa_onnx

    config = sherpa_onnx.VadModelConfig()
    config.silero_vad.model = str(_checked_model())
    config.silero_vad.threshold = threshold
    config.silero_vad.min_silence_duration = min_silence_seconds
    config.silero_vad.min_speech_duration = min_speech_seconds
    config.silero_vad.max_speech_duration = 3600.0  # our splitter cuts long speech: this limit is not kept exactly
    config.sample_rate = SAMPLE_RATE
    return sherpa_onnx.VoiceActivityDetector(config, buffer_size_in_seconds=120)


def _take(detector: Any, total: int) -> list[Span]:
    spans = []
    while not detector.empty():
        first = detector.front.start
        last = min(first + len(detector.front.samples), total)
        detector.pop()
        if last > first:
            spans.append(Span(first / SAMPLE_RATE, last / SAMPLE_RATE))
    return spans


def _as_float(samples: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / 32768.0
    return np.asarray(samples, dtype=np.float32)


@cache
def _checked_model() -> Path:
    try:
        digest = hashlib.sha256(MODEL.read_bytes()).hexdigest()
    except OSError as error:
        raise VadUnavailable(f"the VAD model {MODEL.name} cannot be read: {error.strerror}") from error
    if digest != MODEL_SHA256:
        raise VadUnavailable(f"{MODEL.name} is not the file that was pinned: install Duet again")
    return MODEL
