"""How loud a recording is where someone speaks, and what brings it to the level that detector and recogniser were made for.

Levels are dB of full scale, of frames of 32 ms. Speech is measured from 300 to 4,000 Hz, where mains hum has nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np

from speech.splitter import SAMPLE_RATE

FRAME: Final = 512
"""Samples. A multiple of it is a whole number of the detector's windows."""
TARGET_DB: Final = -16.0
"""Where the VAD finds speech whole. It misses the beginning from 12 dB below on; 20 dB more do no harm."""
LOUD_ENOUGH_DB: Final = TARGET_DB - 12.0
"""From here up speech is left as it is."""
MAX_GAIN_DB: Final = 44.0
INAUDIBLE_DB: Final = -72.0
"""Nothing that loud is speech: the noise of a quiet converter is at -90, a whisper at the other end of a room at -65."""
QUIET_DB: Final = -40.0
"""From here down SenseVoice mishears more and more: at -60, a quarter of the characters instead of 15%."""
STEADY_DB: Final = 6.0
"""Sound whose level moves less than this is noise, hum or a tone; speech has pauses and moves by 15 or more."""

NO_SPEECH: Final = "there is audible sound, but no speech was recognised in it"
"""What a caller reads beside an empty text."""

Samples = np.ndarray[Any, np.dtype[Any]]

_BLOCK: Final = FRAME * 512
_SPEECH = slice(round(300 * FRAME / SAMPLE_RATE) + 1, round(4000 * FRAME / SAMPLE_RATE) + 1)
_HUM = slice(2, round(200 * FRAME / SAMPLE_RATE) + 1)
_CLICK_FRAMES: Final = 4
"""A click touches so many frames at most: the loudest ones do not count."""
_CLICK_SHARE: Final = 0.002
_TAPS: Final = 1025


@dataclass(frozen=True)
class Level:
    """`loud`: of the speech. `quiet`: between it (10th percentile). `hum`: of what sounds all the time below 200 Hz."""

    loud: float
    quiet: float
    hum: float

    @property
    def steady(self) -> bool:
        return self.loud - self.quiet < STEADY_DB


SILENCE: Final = Level(-math.inf, -math.inf, -math.inf)


def measure(samples: Samples) -> Level:
    """The level of mono 16 kHz audio (float32 or int16). A few clicks do not change it."""
    speech, hum = [], []
    for block in _blocks(samples):
        frames = block[: len(block) // FRAME * FRAME].reshape(-1, FRAME)
        power = np.square(np.abs(np.fft.rfft(frames * _window(), axis=1)))
        speech.append(power[:, _SPEECH].sum(axis=1))
        hum.append(power[:, _HUM].sum(axis=1))
    if not speech:
        return SILENCE
    spoken, low = np.concatenate(speech), np.concatenate(hum)
    # The loudest frames may be clicks. What is 30 dB below the others is a pause, or somebody far away.
    rank = min(max(_CLICK_FRAMES, round(_CLICK_SHARE * len(spoken))), len(spoken) - 1)
    top = float(np.partition(spoken, -rank - 1)[-rank - 1])
    loud = float(np.percentile(spoken[spoken >= top / 1000], 75))
    return Level(_db(loud), _db(float(np.percentile(spoken, 10))), _db(float(np.percentile(low, 10))))


def gain(level: Level) -> float:
    """The factor that brings quiet speech to the target; 1 for what is loud enough, and for silence."""
    if level.loud < INAUDIBLE_DB or level.loud >= LOUD_ENOUGH_DB:
        return 1.0
    return float(10 ** (min(TARGET_DB - level.loud, MAX_GAIN_DB) / 20))


def lifted(samples: Samples) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A clip as float32 for a recogniser: raised if it is quiet, and otherwise as it is."""
    clip = as_float(samples)
    level = measure(clip)
    return clip if level.loud >= QUIET_DB else np.clip(clip * np.float32(gain(level)), -1.0, 1.0)


def audible(samples: Samples) -> bool:
    """Whether there is sound that a person hears, be it speech or not."""
    level = measure(samples)
    return max(level.loud, level.hum) >= INAUDIBLE_DB


def hums(level: Level) -> bool:
    """Whether hum is so loud beside the speech that it hides it."""
    return level.hum > INAUDIBLE_DB and level.hum > level.loud - 20.0


def raised(
    samples: Samples, factor: float, *, without_hum: bool = False
) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
    """The samples times a factor as float32, in blocks of whole frames; the last one is filled up with silence. Values may
    leave [-1, 1]: clipping would cost more than that."""
    before = np.zeros(_TAPS // 2, np.float32)
    for start in range(0, len(samples), _BLOCK):
        if without_hum:
            piece = as_float(samples[start : start + _BLOCK + _TAPS // 2])
            block = _high_passed(np.concatenate([before, piece]), min(_BLOCK, len(samples) - start))
            before = as_float(samples[max(0, start + _BLOCK - _TAPS // 2) : start + _BLOCK])
        else:
            block = as_float(samples[start : start + _BLOCK])
        block = block * np.float32(factor)
        yield np.pad(block, (0, -len(block) % FRAME))


def as_float(samples: Samples) -> np.ndarray[Any, np.dtype[np.float32]]:
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / np.float32(32768.0)
    return np.asarray(samples, dtype=np.float32)


def _blocks(samples: Samples) -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
    """Float32 in bounded pieces; audio of less than a frame is one frame."""
    if len(samples) < FRAME:
        if len(samples):
            yield np.pad(as_float(samples), (0, FRAME - len(samples)))
        return
    for start in range(0, len(samples) - FRAME + 1, _BLOCK):
        yield as_float(samples[start : start + _BLOCK])


def _high_passed(samples: Samples, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """`count` samples, from `_TAPS // 2` on."""
    size = 1 << (len(samples) + _TAPS - 1).bit_length()
    filtered = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(_filter(), size), size)
    return filtered[_TAPS - 1 :][:count].astype(np.float32)


@cache
def _filter() -> np.ndarray[Any, np.dtype[np.float64]]:
    """A high pass: -50 dB at 200 Hz, nothing lost from 280 Hz on."""
    at = np.arange(_TAPS) - _TAPS // 2
    low = 2 * 240 / SAMPLE_RATE * np.sinc(2 * 240 / SAMPLE_RATE * at) * np.hamming(_TAPS)
    high: np.ndarray[Any, np.dtype[np.float64]] = (at == 0) - low / low.sum()
    return high


@cache
def _window() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Hann, scaled so that the powers of the spectrum sum to the frame's mean square."""
    window = np.hanning(FRAME)
    return (window * math.sqrt(2 / (FRAME * float(np.square(window).sum())))).astype(np.float32)


def _db(power: float) -> float:
    return 10 * math.log10(power) if power > 0 else -math.inf
