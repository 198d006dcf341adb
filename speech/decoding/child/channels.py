"""Which channels of a recording hold what is to be heard.

The mean of all channels is right for most files. It is wrong where channels are each other's inverse (a broken balanced
cable), where they cancel each other in places, and where some hold only noise. `Survey` measures a whole recording in a
little memory, and `choose` decides. One sentence in an hour counts: nothing is judged by an average over the recording.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FRAMES_A_SECOND = 20
SILENT_DB = -70.0
"""Below this (dB of full scale, root mean square) a frame holds nothing."""
FAR_BELOW_DB = 50.0
"""A channel this far below the loudest one holds nothing beside it."""
STEADY_DB, LIVELY_DB = 1.5, 3.0
"""How much the level of 50 ms changes from one frame to the next, in the liveliest two seconds: noise and hum stay below 1 dB,
a lone word makes 2 dB, speech lies near 5."""
CANCELLED = 0.25
"""The mean of N unrelated channels has 1/N of their power. Less than a quarter of that means that they cancel each other."""
CANCELLED_SHARE = 0.05
"""Of the power, or of the seconds that are no quieter than `_CLEAR` of the loudest one."""
RELATED = 0.5
"""A correlation from which two channels hold the same sound."""
_CLEAR = 10**-3.5
_LOUD_FRAMES = 4
"""A fifth of a second: a channel is as loud as its loudest word, but not as a click."""
_WINDOW = 2 * FRAMES_A_SECOND
_LAG_SECONDS = 0.0005

Samples = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Mix:
    """`weights` sum the channels up; None is the mean of all. `note` says what was left out or turned over."""

    weights: tuple[float, ...] | None = None
    note: str | None = None


class Survey:
    """Measures blocks of one track: 20 levels a channel and one covariance matrix for each second, or for each eight seconds
    where there are more than 16 channels.

    What is measured is the difference to the sample half a millisecond before: it keeps the voice, and a constant voltage, hum
    and rumble hide neither speech nor its inverse.
    """

    def __init__(self, channels: int, rate: int) -> None:
        self.channels, self._rate = channels, rate
        self._stride = 1 if channels <= 4 else 4 if channels <= 16 else 16
        self._together = 1 if channels <= 16 else 8
        self._left: list[Samples] = []
        self._powers: list[Samples] = []
        self._covariances: list[Samples] = []
        self._summing: list[Samples] = []

    def add(self, block: Samples) -> None:
        """`block`: [samples, channels]. Blocks of another number of channels are left out."""
        if block.shape[1] != self.channels:
            return
        self._left.append(block)
        if sum(map(len, self._left)) >= self._rate:
            self._measure_whole_seconds()

    def end(self) -> None:
        """Count what is left of the last second."""
        self._measure_whole_seconds()
        if self._left and len(self._left[0]) >= self._rate // FRAMES_A_SECOND:
            self._measure(self._left[0])
        self._left = []
        self._sum_up()

    def _measure_whole_seconds(self) -> None:
        if not self._left:
            return
        samples = np.concatenate(self._left)
        whole = len(samples) // self._rate * self._rate
        for start in range(0, whole, self._rate):
            self._measure(samples[start : start + self._rate])
        self._left = [samples[whole:].copy()]

    def _measure(self, second: Samples) -> None:
        lag = round(self._rate * _LAG_SECONDS)
        voice = np.zeros_like(second)
        voice[lag:] = second[lag:] - second[:-lag]
        size = self._rate // FRAMES_A_SECOND
        whole = voice[: len(voice) // size * size].reshape(-1, size, self.channels)
        self._powers.append(np.mean(np.square(whole), axis=1, dtype=np.float32))
        some = voice[:: self._stride]
        self._summing.append(some.T @ some / np.float32(len(some)))
        if len(self._summing) == self._together:
            self._sum_up()

    def _sum_up(self) -> None:
        if self._summing:
            self._covariances.append(np.mean(self._summing, axis=0, dtype=np.float32))
        self._summing = []

    def levels(self) -> Samples:
        """dB of full scale, [frames, channels]."""
        powers = np.concatenate(self._powers) if self._powers else np.zeros((0, self.channels), np.float32)
        found: Samples = 10 * np.log10(powers + np.float32(1e-12))
        return found

    def covariances(self) -> Samples:
        """[seconds, channels, channels]."""
        return np.asarray(self._covariances, np.float32).reshape(-1, self.channels, self.channels)


def lively_share(levels: Samples) -> float:
    """In what share of its stretches of two seconds a track may hold speech: it is neither silent nor steady there. `levels`:
    [frames, channels]."""
    lively = np.zeros(1, np.bool)
    for c, loudness in enumerate(_loudness(levels)):
        if loudness > SILENT_DB:
            lively = lively | (_changes(levels[:, c], loudness) >= STEADY_DB)
    return float(lively.mean())


def choose(levels: Samples, covariances: Samples) -> Mix:
    """How to sum up the channels. `levels` and `covariances` as `Survey` gives them."""
    count = levels.shape[1]
    loudness = _loudness(levels)
    heard = [c for c in range(count) if loudness[c] > SILENT_DB]
    if count == 1 or not heard:
        return Mix()
    liveliness = {c: float(_changes(levels[:, c], loudness[c]).max()) for c in heard}
    steady = [c for c in heard if liveliness[c] < STEADY_DB] if max(liveliness.values()) >= LIVELY_DB else []
    lively = [c for c in heard if c not in steady]
    loudest = max(loudness[c] for c in lively)
    kept = sorted((c for c in lively if loudness[c] > loudest - FAR_BELOW_DB), key=lambda c: -loudness[c])
    weights, said = _summed(kept, covariances, count)
    notes = [f"{_named(steady, count)} only noise and left out"] if steady else []
    note = "; ".join([*notes, *([said] if said else [])]) or None
    if len(kept) == count and len(set(weights.values())) == 1 and len(weights) == count:
        return Mix(None, note)
    return Mix(tuple(weights.get(c, 0.0) for c in range(count)), note)


def _loudness(levels: Samples) -> Samples:
    """The level that the loudest fifth of a second has, or in a clip one frame in twenty: [channels]."""
    if len(levels) == 0:
        return np.full(levels.shape[1], -120.0, np.float32)
    rank = len(levels) - min(max(round(len(levels) / 20), 1), _LOUD_FRAMES)
    found: Samples = np.partition(levels, rank, axis=0)[rank]
    return found


def _changes(level: Samples, loudness: float) -> Samples:
    """The mean change of the level between frames next to each other, in dB, for every stretch of two seconds."""
    floored = np.maximum(level, loudness - FAR_BELOW_DB)
    # A step out of digital silence is no sign of speech.
    changes = np.minimum(np.abs(np.diff(floored)), 20.0)
    if len(changes) == 0:
        return np.zeros(1, np.float32)
    size = min(_WINDOW, len(changes))
    sums = np.concatenate([[0.0], np.cumsum(changes, dtype=np.float64)])
    found: Samples = ((sums[size:] - sums[:-size]) / size).astype(np.float32)
    return found


def _summed(kept: Sequence[int], covariances: Samples, count: int) -> tuple[Mapping[int, float], str | None]:
    """The weights of the kept channels (the loudest first) that lose least of what they hold, and what to say of them."""
    plain = {c: 1.0 / len(kept) for c in kept}
    if len(kept) < 2 or len(covariances) == 0:
        return plain, None
    lost = _Lost(kept, covariances)
    if lost.of(plain) <= CANCELLED_SHARE:
        return plain, None
    signs = _signs(kept, covariances[lost.where(plain)])
    turned = sorted(c for c in kept if signs[c] < 0)
    ways: list[tuple[Mapping[int, float], str]] = []
    if turned:
        said = f"{_named(turned, count)} the inverse of the others and turned over"
        ways.append(({c: signs[c] / len(kept) for c in kept}, said))
    for c in kept:
        ways.append(({c: 1.0}, f"the channels cancel each other: channel {c + 1} of {count} was taken alone"))
    best = min(ways, key=lambda way: round(lost.of(way[0]), 2))
    # What a channel alone lacks may be worse than what the mean loses.
    return best if lost.of(best[0]) < lost.of(plain) / 2 else (plain, "the channels cancel each other in places")


def _signs(kept: Sequence[int], covariances: Samples) -> dict[int, float]:
    """Each channel's sign: that of the channel before it that it is most like, or the opposite of it. `covariances` are those
    of the seconds that are lost without signs."""
    whole = covariances.sum(axis=0, dtype=np.float64)
    power = np.sqrt(np.diag(whole)) + 1e-15
    signs = {kept[0]: 1.0}
    for c in kept[1:]:
        like = max(signs, key=lambda other: abs(whole[c, other]) / power[other])
        related = whole[c, like] / (power[c] * power[like])
        signs[c] = signs[like] * math.copysign(1.0, related) if abs(related) > RELATED else 1.0
    return signs


class _Lost:
    """How much of what some channels hold is lost by a way to sum them up."""

    def __init__(self, kept: Sequence[int], covariances: Samples) -> None:
        self._kept = kept
        self._covariances = covariances[:, kept][:, :, kept]
        self._power = np.einsum("wii->w", self._covariances, dtype=np.float64)
        silent = 10 ** (SILENT_DB / 10)
        self._active = self._power > max(1e-6 * float(self._power.max()), silent)
        self._clear = self._power > max(_CLEAR * float(self._power.max()), silent)

    def of(self, weights: Mapping[int, float]) -> float:
        """The share that is lost of their power, or of their seconds."""
        lost = self.where(weights)
        power = float(self._power[lost].sum()) / max(float(self._power[self._active].sum()), 1e-30)
        seconds = float((self._clear & lost).sum()) / max(float(self._clear.sum()), 1.0)
        return max(power, seconds)

    def where(self, weights: Mapping[int, float]) -> Any:
        """The seconds that are lost."""
        if len(weights) == 1:
            at = self._kept.index(next(iter(weights)))
            left = self._covariances[:, at, at]
        else:
            each = np.array([weights[c] for c in self._kept], np.float32)
            left = np.einsum("wij,i,j->w", self._covariances, each, each, optimize=True)
        return self._active & (left < CANCELLED * self._power / len(self._kept) ** 2)


def _named(channels: list[int], count: int) -> str:
    numbers = ", ".join(str(c + 1) for c in channels[:8]) + (" ..." if len(channels) > 8 else "")
    return f"channel {numbers} of {count} is" if len(channels) == 1 else f"channels {numbers} of {count} are"
