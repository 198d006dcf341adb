"""Which channels of a recording hold what is to be heard.

The mean of all channels is right for most files. It is wrong where channels are each other's inverse (a broken balanced
cable), where they cancel each other in places, and where some hold only noise. `Survey` measures a whole recording in a
little memory, and `choose` decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

FRAMES_A_SECOND = 20
SILENT_DB = -70.0
"""Below this (dB of full scale, root mean square) a frame holds nothing."""
FAR_BELOW_DB = 50.0
"""A channel this far below the loudest one holds nothing beside it."""
STEADY_DB, LIVELY_DB = 1.5, 3.0
"""How much the level of 50 ms changes from one frame to the next, on average: noise and hum stay below 1.5 dB, speech lies
near 5."""
CANCELLED = 0.25
"""The mean of N unrelated channels has 1/N of their power. Less than a quarter of that means that they cancel each other."""
CANCELLED_SHARE = 0.05
RELATED = 0.5
"""A correlation from which two channels hold the same sound."""

Samples = np.ndarray[Any, np.dtype[np.float32]]
Levels = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Mix:
    """`weights` sum the channels up; None is the mean of all. `note` says what was left out or turned over."""

    weights: tuple[float, ...] | None = None
    note: str | None = None


class Survey:
    """Measures blocks of one track. Memory: 20 levels a channel and one covariance matrix for each second."""

    def __init__(self, channels: int, rate: int) -> None:
        self.channels, self._rate = channels, rate
        self._stride = 1 if channels <= 4 else 4 if channels <= 16 else 16
        self._left: list[Samples] = []
        self._powers: list[Samples] = []
        self._covariances: list[Samples] = []

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

    def _measure_whole_seconds(self) -> None:
        if not self._left:
            return
        samples = np.concatenate(self._left)
        whole = len(samples) // self._rate * self._rate
        for start in range(0, whole, self._rate):
            self._measure(samples[start : start + self._rate])
        self._left = [samples[whole:].copy()]

    def _measure(self, second: Samples) -> None:
        size = self._rate // FRAMES_A_SECOND
        whole = second[: len(second) // size * size].reshape(-1, size, self.channels)
        self._powers.append(np.mean(np.square(whole), axis=1, dtype=np.float32))
        some = second[:: self._stride]
        self._covariances.append(some.T @ some / np.float32(len(some)))

    def levels(self) -> Levels:
        """dB of full scale, [frames, channels]."""
        powers = np.concatenate(self._powers) if self._powers else np.zeros((0, self.channels), np.float32)
        return 10.0 * np.log10(powers.astype(np.float64) + 1e-12)

    def covariances(self) -> Levels:
        """[seconds, channels, channels]."""
        return np.asarray(self._covariances, np.float64).reshape(-1, self.channels, self.channels)


def holds_speech(levels: Levels) -> bool:
    """Whether a track may hold speech: it is neither silent nor steady. `levels`: [frames, channels]."""
    return any(
        _loudness(levels)[c] > SILENT_DB and _liveliness(levels[:, c]) >= STEADY_DB for c in range(levels.shape[1])
    )


def choose(levels: Levels, covariances: Levels) -> Mix:
    """How to sum up the channels. `levels` and `covariances` as `Survey` gives them."""
    count = levels.shape[1]
    if count == 1 or len(levels) == 0:
        return Mix()
    loudness = _loudness(levels)
    if loudness.max() < SILENT_DB:
        return Mix()
    heard = [c for c in range(count) if loudness[c] > max(SILENT_DB, loudness.max() - FAR_BELOW_DB)]
    liveliness = {c: _liveliness(levels[:, c]) for c in heard}
    steady = [c for c in heard if liveliness[c] < STEADY_DB] if max(liveliness.values()) >= LIVELY_DB else []
    kept = [c for c in heard if c not in steady]
    note = f"{_named(steady, count)} only noise and left out" if steady else None
    signs, turned = _signs(kept, loudness, covariances)
    if signs is None:
        loudest = max(kept, key=lambda c: loudness[c])
        left_out = f"the channels cancel each other: channel {loudest + 1} of {count} was taken alone"
        return Mix(_weights(count, {loudest: 1.0}), left_out if note is None else f"{note}; {left_out}")
    if turned:
        said = f"{_named(turned, count)} the inverse of the others and turned over"
        note = said if note is None else f"{note}; {said}"
    if len(kept) == count and not turned:
        return Mix()
    return Mix(_weights(count, {c: signs[c] / len(kept) for c in kept}), note)


def _loudness(levels: Levels) -> Levels:
    """The level that one frame in twenty passes: [channels]."""
    if len(levels) == 0:
        return np.full(levels.shape[1], -120.0)
    found: Levels = np.percentile(levels, 95, axis=0)
    return found


def _liveliness(level: Levels) -> float:
    """The mean change of the level between frames next to each other, where one of them is heard, in dB."""
    loud = level > max(SILENT_DB, float(np.percentile(level, 95)) - FAR_BELOW_DB)
    pairs = loud[1:] | loud[:-1]
    # A step out of digital silence is no sign of speech.
    changes = np.minimum(np.abs(np.diff(level)), 20.0)[pairs]
    return float(changes.mean()) if len(changes) else 0.0


def _signs(kept: list[int], loudness: Levels, covariances: Levels) -> tuple[dict[int, float] | None, list[int]]:
    """A sign for each kept channel, so that they do not cancel each other, and the channels that are turned over. None when
    no signs help."""
    plain = dict.fromkeys(kept, 1.0)
    if not _cancel(plain, covariances):
        return plain, []
    first = max(kept, key=lambda c: loudness[c])
    whole = covariances.sum(axis=0)
    related = {c: whole[first, c] / np.sqrt(whole[first, first] * whole[c, c] + 1e-30) for c in kept}
    signs = {c: -1.0 if related[c] < -RELATED else 1.0 for c in kept}
    turned = [c for c in kept if signs[c] < 0]
    return (None, []) if not turned or _cancel(signs, covariances) else (signs, turned)


def _cancel(signs: dict[int, float], covariances: Levels) -> bool:
    """Whether the sum of these channels loses what they hold, in more than a few of the seconds that hold something."""
    kept = sorted(signs)
    if len(kept) < 2 or len(covariances) == 0:
        return False
    among = covariances[:, kept][:, :, kept]
    sign = np.array([signs[c] for c in kept])
    mean = np.einsum("wij,i,j->w", among, sign, sign) / len(kept) ** 2
    power = np.einsum("wii->w", among) / len(kept)
    active = power > max(1e-6 * float(power.max()), 10 ** (SILENT_DB / 10))
    lost = mean < CANCELLED * power / len(kept)
    return bool(power[active & lost].sum() > CANCELLED_SHARE * power[active].sum())


def _weights(count: int, given: dict[int, float]) -> tuple[float, ...]:
    return tuple(given.get(c, 0.0) for c in range(count))


def _named(channels: list[int], count: int) -> str:
    numbers = ", ".join(str(c + 1) for c in channels[:8]) + (" ..." if len(channels) > 8 else "")
    return f"channel {numbers} of {count} is" if len(channels) == 1 else f"channels {numbers} of {count} are"
