"""Where someone speaks: silero's model through sherpa-onnx."""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import models
from duet.errors import Unavailable
from speech import level
from speech.splitter import SAMPLE_RATE, Span

MODEL = models.EMBEDDED / "silero-vad" / "silero_vad_16k_op15.onnx"
MODEL_SHA256 = "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49"
"""sherpa-onnx ends the process when the VAD model is a wrong file, and nothing can catch that: so the file is pinned."""
WINDOW = 512
"""sherpa's detector must get exactly this many samples a call; larger pieces silently give wrong spans."""


class Settings(NamedTuple):
    """`lead_seconds` of silence before and after the audio: the detector needs a moment to hear that a word begins."""

    threshold: float = 0.5
    min_speech_seconds: float = 0.2
    lead_seconds: float = 0.0


SPEECH = Settings()
WORD = Settings(threshold=0.6, min_speech_seconds=0.03, lead_seconds=0.5)
"""With silence around it, the shortest word reaches 0.7, noise 0.3, and plucked strings 0.5."""
MIN_SILENCE_SECONDS = 0.25
WORD_SECONDS, ONE_WORD_SECONDS = 2.0, 10.0
"""A clip that is no longer is one piece; in one that is no longer, a single word is looked for if there is no speech."""
MIN_PAUSE_SECONDS = 0.4
QUIETER = 10 ** (10 / 20)
"""The detector loses beginnings from 12 dB below its level on."""

MAX_IDLE = 2
_IDLE: dict[Settings, deque[Any]] = {}
"""Detectors between two uses. Making one takes 33 ms, a large part of the time for a short clip. A deque's ends are
thread-safe."""


class VadUnavailable(Unavailable):
    """The VAD model's file is missing or is not the pinned one."""


def detect(samples: level.Samples, *, on_progress: Callable[[float], None] | None = None) -> list[Span]:
    """Spans of speech in mono 16 kHz audio (float32 in [-1, 1] or int16), in order and without overlap.

    They do not depend on the level: the detector hears the audio at the level that it was made for. What is quiet beside louder
    speech is looked at again by itself. A clip of a word or two is speech as a whole or not at all, so that nothing of it is cut
    off. `on_progress` is called with the seconds seen so far. CPU time is about 1% of the audio's.
    """
    seconds = len(samples) / SAMPLE_RATE
    if seconds <= WORD_SECONDS:
        return [Span(0.0, seconds)] if _heard(samples, level.measure(samples), WORD) else []
    whole = level.measure(samples)
    spans = _heard(samples, whole, SPEECH, on_progress)
    spans = _with_quiet(samples, spans, level.gain(whole))
    if not spans and seconds <= ONE_WORD_SECONDS:
        return _heard(samples, whole, WORD)
    return spans


def _with_quiet(samples: level.Samples, spans: Sequence[Span], gain: float) -> list[Span]:
    """The spans, and between those that are loud enough for `gain` what is so much quieter that it needs more."""

    def needs_more(first: int, last: int) -> level.Level | None:
        there = level.measure(samples[first:last])
        return there if not there.steady and level.gain(there) >= QUIETER * gain else None

    loud, quiet = list[Span](), list[Span]()
    for span in spans:
        (loud if needs_more(*_samples(span)) is None else quiet).append(span)
    found = list(loud)
    ends = [0, *(_samples(span)[1] for span in loud)]
    starts = [*(_samples(span)[0] for span in loud), len(samples)]
    for first, last in zip(ends, starts, strict=True):
        begin = first / SAMPLE_RATE
        there = needs_more(first, last) if spans and last - first >= MIN_PAUSE_SECONDS * SAMPLE_RATE else None
        if there is None:
            found += [span for span in quiet if first <= _samples(span)[0] < last]
        else:
            heard = _heard(samples[first:last], there, SPEECH)
            found += [Span(begin + span.start, begin + span.end) for span in heard]
    return sorted(found, key=lambda span: span.start)


def _samples(span: Span) -> tuple[int, int]:
    return round(span.start * SAMPLE_RATE), round(span.end * SAMPLE_RATE)


def _heard(
    samples: level.Samples,
    loudness: level.Level,
    settings: Settings,
    on_progress: Callable[[float], None] | None = None,
) -> list[Span]:
    if loudness.loud < level.INAUDIBLE_DB:
        return []
    detector = _borrow(settings)
    spans: list[Span] = []
    lead = round(settings.lead_seconds * SAMPLE_RATE) // WINDOW * WINDOW
    silence = np.zeros(lead, np.float32)
    blocks = level.raised(samples, level.gain(loudness), without_hum=level.hums(loudness))
    seen = 0
    for block in itertools.chain([silence], blocks, [silence]):
        for start in range(0, len(block), WINDOW):
            detector.accept_waveform(block[start : start + WINDOW])
            spans += _take(detector, lead, len(samples))
            if on_progress and (seen + start) % (WINDOW * 312) == 0:  # every ten seconds
                on_progress((seen + start) / SAMPLE_RATE)
        seen += len(block)
    detector.flush()
    spans += _take(detector, lead, len(samples))
    # Not in a `finally`: after an error the detector's state is unknown, so it is dropped.
    _give_back(settings, detector)
    return spans


def _borrow(settings: Settings) -> Any:
    """A detector for this call alone: an idle one, or a new one."""
    try:
        return _IDLE[settings].pop()
    except (KeyError, IndexError):
        return _create(settings)


def _give_back(settings: Settings, detector: Any) -> None:
    detector.reset()
    _IDLE.setdefault(settings, deque(maxlen=MAX_IDLE)).append(detector)


def _create(settings: Settings) -> Any:
    import sherpa_onnx

    config = sherpa_onnx.VadModelConfig()
    config.silero_vad.model = str(_checked_model())
    config.silero_vad.threshold = settings.threshold
    config.silero_vad.min_silence_duration = MIN_SILENCE_SECONDS
    config.silero_vad.min_speech_duration = settings.min_speech_seconds
    config.silero_vad.max_speech_duration = 3600.0  # our splitter cuts long speech: this limit is not kept exactly
    config.sample_rate = SAMPLE_RATE
    return sherpa_onnx.VoiceActivityDetector(config, buffer_size_in_seconds=120)


def _take(detector: Any, lead: int, total: int) -> list[Span]:
    spans = []
    while not detector.empty():
        first = max(0, detector.front.start - lead)
        last = min(detector.front.start - lead + len(detector.front.samples), total)
        detector.pop()
        if last > first:
            spans.append(Span(first / SAMPLE_RATE, last / SAMPLE_RATE))
    return spans


@cache
def _checked_model() -> Path:
    try:
        digest = hashlib.sha256(MODEL.read_bytes()).hexdigest()
    except OSError as error:
        raise VadUnavailable(f"the VAD model {MODEL.name} cannot be read: {error.strerror}") from error
    if digest != MODEL_SHA256:
        raise VadUnavailable(f"{MODEL.name} is not the file that was pinned: install Duet again")
    return MODEL
