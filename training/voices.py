"""Synthetic voices from espeak-ng, 16 kHz mono: one process per piece, as the library crashes after a few voice
changes.

`cmn-latn-pinyin` speaks Chinese, because Debian's `cmn` voice misreads Han characters. Half of the Chinese pieces are
given as pinyin with tone numbers (phrases decide polyphones), half as characters (with espeak-ng's own readings).
"""

from __future__ import annotations

import random
import re
import subprocess
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pypinyin import Style, lazy_pinyin
from scipy.signal import fftconvolve, lfilter, resample_poly

from training.variants import DEVELOPMENT_VARIANTS, HELD_OUT_VARIANTS, TRAIN_VARIANTS

__all__ = ["DEVELOPMENT_VARIANTS", "HELD_OUT_VARIANTS", "TRAIN_VARIANTS", "distort", "pinyin", "speak"]

Samples = NDArray[np.float32]

RATE: Final = 16_000
WAVE_HEADER_BYTES: Final = 44

ENGLISH: Final = ("gmw/en-US", "gmw/en-US", "gmw/en", "gmw/en-GB-x-rp", "gmw/en-US-nyc")
CHINESE: Final = "cmn-latn-pinyin"

_PIECE = re.compile(r"[A-Za-z][A-Za-z' ]*[,.?!]?|[^A-Za-z]+")
_HAN = re.compile(r"[\u4e00-\u9fff]")


def speak(
    text: str,
    variant: str,
    rng: random.Random,
    *,
    words_a_minute: int | None = None,
    pitch: int | None = None,
    english: str | None = None,
) -> Samples:
    """`text` (Chinese, English or mixed, without digits) in one voice, surrounded by short silence.

    Speed, pitch (0 to 99) and English accent are drawn from `rng` unless they are given. Give them to keep one speaker
    over several utterances. Raises RuntimeError if espeak-ng fails.
    """
    words_a_minute = words_a_minute or rng.randint(135, 215)
    pitch = rng.randint(25, 75) if pitch is None else pitch
    english = english or rng.choice(ENGLISH)
    pieces = [_silence(rng.uniform(0.05, 0.35))]
    for piece in _PIECE.findall(text):
        for phrase in re.split(r"(?<=[，,])", piece):
            if not re.search(r"\w", phrase):
                continue
            han = bool(_HAN.search(phrase))
            written = pinyin(phrase) if han and rng.random() < 0.5 else phrase
            voice = (CHINESE if han else english) + "+" + variant
            pieces.append(_espeak(written, voice, words_a_minute, pitch))
            pieces.append(_silence(rng.uniform(0.12, 0.3) if phrase.rstrip()[-1] in "，," else rng.uniform(0, 0.06)))
    pieces.append(_silence(rng.uniform(0.1, 0.35)))
    return np.concatenate(pieces)


def pinyin(text: str) -> str:
    """Han characters as syllables with tone numbers, `5` for the neutral tone."""
    return " ".join(lazy_pinyin(text, style=Style.TONE3, neutral_tone_with_five=True))


def distort(samples: Samples, rng: random.Random) -> Samples:
    """The samples in a room (30%), at another loudness, with white or coloured noise at 8 to 35 dB (70%)."""
    noise = np.random.default_rng(rng.getrandbits(32))
    if rng.random() < 0.3:
        length = int(RATE * rng.uniform(0.08, 0.3))
        decay = np.exp(-np.arange(length, dtype=np.float32) / (length / 6))
        room = (noise.standard_normal(length) * decay * 0.3).astype(np.float32)
        room[0] = 1.0
        samples = fftconvolve(samples, room)[: len(samples)].astype(np.float32)
    samples = samples / (np.abs(samples).max() + 1e-6) * np.float32(10 ** (rng.uniform(-22, -1) / 20))
    if rng.random() < 0.7:
        snr_db = rng.uniform(8, 35)
        added = noise.standard_normal(len(samples)).astype(np.float32)
        if rng.random() < 0.5:
            added = lfilter([1.0], [1.0, -rng.uniform(0.5, 0.95)], added).astype(np.float32)
        samples = samples + added * np.float32(
            np.sqrt(np.mean(samples**2) / (np.mean(added**2) + 1e-12)) * 10 ** (-snr_db / 20)
        )
    return np.clip(samples, -1.0, 1.0).astype(np.float32)


def _espeak(text: str, voice: str, words_a_minute: int, pitch: int) -> Samples:
    command = ["espeak-ng", "-b", "1", "-v", voice, "-s", str(words_a_minute), "-p", str(pitch)]
    done = subprocess.run([*command, "--stdout", "--", text], capture_output=True, check=False, close_fds=False)
    if done.returncode != 0:
        raise RuntimeError(f"espeak-ng failed on {text!r}: {done.stderr.decode(errors='replace').strip()}")
    raw = done.stdout[WAVE_HEADER_BYTES:]
    samples = np.frombuffer(raw[: len(raw) // 2 * 2], "<i2").astype(np.float32) / 32768
    samples = resample_poly(samples, 320, 441).astype(np.float32)
    loud = np.flatnonzero(np.abs(samples) > 0.005)
    return samples[max(0, loud[0] - 160) : loud[-1] + 320] if len(loud) else samples[:800]


def _silence(seconds: float) -> Samples:
    return np.zeros(int(seconds * RATE), np.float32)
