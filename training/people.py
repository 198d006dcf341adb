"""Synthetic people and their meetings, for the speaker models.

    python -m training.people --out build/train/speaker/development

This command writes meetings of the development voices as recordings with their truth, in the format of `duet bench
der`.

A person is an espeak-ng variant with one pitch, speed and size. A voice that is played slower or faster sounds like a
longer or shorter vocal tract, so a few dozen variants make many hundred people. Each person speaks Chinese and English.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import soundfile
from scipy.signal import fftconvolve, lfilter, resample_poly

from training import voices
from training.sentences import Language, Writer

DEVELOPMENT_MEETINGS: Final = 32
TRACTS: Final = ((9, 10), (1, 1), (11, 10))
"""Lengths of the vocal tract relative to the variant's own, as fractions."""
LOUD: Final = 0.005
"""Amplitude in a clean recording, relative to full scale. Samples below it are silence."""


@dataclass(frozen=True)
class Person:
    variant: str
    pitch: int
    words_a_minute: int
    english: str

    def say(self, text: str, rng: random.Random) -> voices.Samples:
        """The spoken text without noise or surrounding silence. The peak is 0.5."""
        samples = voices.speak(
            text, self.variant, rng, words_a_minute=self.words_a_minute, pitch=self.pitch, english=self.english
        )
        loud = np.flatnonzero(np.abs(samples) > LOUD)
        samples = samples[loud[0] : loud[-1] + 1] if len(loud) else samples
        return (samples / (np.abs(samples).max() + 1e-6) * 0.5).astype(np.float32)


def draw(variant: str, rng: random.Random) -> Person:
    return Person(variant, rng.randint(20, 80), rng.randint(140, 210), rng.choice(voices.ENGLISH))


def resized(samples: voices.Samples, tract: tuple[int, int]) -> voices.Samples:
    """The voice with a vocal tract `tract` times as long. A longer tract is slower and lower in pitch and formants."""
    return samples if tract[0] == tract[1] else resample_poly(samples, *tract).astype(np.float32)


@dataclass(frozen=True)
class Turn:
    """One turn of one person. Times are in seconds."""

    start: float
    end: float
    speaker: str


@dataclass(frozen=True)
class SyntheticMeeting:
    name: str
    samples: voices.Samples
    turns: tuple[Turn, ...]


def meeting(number: int, variants: Sequence[str]) -> SyntheticMeeting:
    """A meeting of two to five people and 30 to 180 s. They speak in turn, with pauses. Each has one loudness; the room
    and the noise are the same for all.

    `number` determines everything.
    """
    rng = random.Random(f"meeting {number}")
    writer = Writer(rng)
    people = [draw(variant, rng) for variant in rng.sample(list(variants), 2 + number % 4)]
    loudness = [10 ** (rng.uniform(-8, 0) / 20) for _ in people]
    language: tuple[Language | None, ...] = rng.choice((("zh",), ("en",), (None,), ("zh", "en")))
    seconds = rng.uniform(max(30, 12 * len(people)), 180)
    pieces: list[voices.Samples] = [np.zeros(int(rng.uniform(0.2, 1.5) * voices.RATE), np.float32)]
    turns: list[Turn] = []
    spoken = len(pieces[0])
    who = -1
    while spoken < seconds * voices.RATE or len({turn.speaker for turn in turns}) < len(people):
        unheard = len(turns) < len(people)
        who = len(turns) if unheard else rng.choice([k for k in range(len(people)) if k != who])
        text = " ".join(writer.sentence(rng.choice(language)).text for _ in range(rng.choice((1, 1, 2))))
        said = people[who].say(text, rng) * np.float32(loudness[who])
        turns.append(Turn(spoken / voices.RATE, (spoken + len(said)) / voices.RATE, f"P{who}"))
        pause = np.zeros(int(rng.uniform(0.2, 1.4) * voices.RATE), np.float32)
        pieces += [said, pause]
        spoken += len(said) + len(pause)
    return SyntheticMeeting(f"meeting{number:02d}", surrounded(np.concatenate(pieces), rng), tuple(turns))


def surrounded(samples: voices.Samples, rng: random.Random) -> voices.Samples:
    """The samples in a room (40%) and with steady noise, white to dark, 12 to 45 dB below the speech."""
    noise = np.random.default_rng(rng.getrandbits(32))
    if rng.random() < 0.4:
        length = int(voices.RATE * rng.uniform(0.05, 0.2))
        room = noise.standard_normal(length) * np.exp(-np.arange(length) / (length / 6)) * 0.2
        room[0] = 1.0
        samples = fftconvolve(samples, room)[: len(samples)].astype(np.float32)
    added = lfilter([1.0], [1.0, -rng.uniform(0.0, 0.95)], noise.standard_normal(len(samples)))
    speech = np.sqrt(np.mean(samples[np.abs(samples) > LOUD] ** 2) + 1e-12)
    level = speech / np.sqrt(np.mean(added**2)) * 10 ** (-rng.uniform(12, 45) / 20)
    samples = samples + (added * level).astype(np.float32)
    return (samples / np.abs(samples).max() * rng.uniform(0.2, 0.9)).astype(np.float32)


def write(number: int, variants: Sequence[str], folder: Path) -> Path:
    """Write one meeting as FLAC and its truth beside it, unless they exist. Returns the truth's path."""
    truth = folder / f"meeting{number:02d}.json"
    if not truth.exists():
        made = meeting(number, variants)
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{made.name}.flac", made.samples, voices.RATE, subtype="PCM_16")
        turns = [asdict(turn) for turn in made.turns]
        truth.write_text(
            json.dumps({"id": made.name, "audio": f"{made.name}.flac", "turns": turns}) + "\n", encoding="utf-8"
        )
    return truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=DEVELOPMENT_MEETINGS)
    options = parser.parse_args()
    for number in range(options.count):
        print(write(number, voices.DEVELOPMENT_VARIANTS, options.out), flush=True)


if __name__ == "__main__":
    main()
