"""Make the recogniser's training data: random sentences in synthetic voices, as log-mel features in shards.

    python -m training.recogniser.data

A shard depends on its number alone, so an interrupted run continues with the first missing one. The 96 shards (90
hours) take 25 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from training import sentences, voices

WORK: Final = Path("build/train/recogniser")
SHARD: Final = 1_000
"""Utterances in one shard."""
MELS: Final = 80
FRAMES_A_SECOND: Final = 100
QUANTUM, FLOOR = 0.16, -16.0
"""Features are stored as bytes: log-mel = byte * QUANTUM + FLOOR. These steps are far smaller than the noise."""
TRAIN_SHARDS, UNHEARD_SHARDS = 76, 20
"""The recogniser trains on the first shards only. The review model learns to correct its mistakes in the others."""
NO_SPEECH_SHARE: Final = 0.015

Features = NDArray[np.uint8]


@dataclass(frozen=True)
class Utterance:
    """`features` are (frames, 80) bytes. `language` is "nospeech" for noise (event "Event_UNK") and music ("BGM")."""

    text: str
    language: str
    event: str
    features: Features


def make_shard(folder: Path, number: int, variants: tuple[str, ...]) -> float:
    """Write one shard unless it exists. Returns its seconds of audio."""
    target = shard_path(folder, number)
    if target.exists():
        with np.load(target) as found:
            return float(found["frames"].sum()) / FRAMES_A_SECOND
    rng = random.Random(f"recogniser {folder.name} {number}")
    writer = sentences.Writer(rng)
    rows, features = [], []
    for _ in range(SHARD):
        if rng.random() < NO_SPEECH_SHARE:
            event = rng.choice(("BGM", "Event_UNK"))
            samples = music(rng) if event == "BGM" else noise(rng)
            rows.append({"text": "", "language": "nospeech", "event": event})
        else:
            sentence = writer.sentence()
            samples = voices.distort(voices.speak(sentence.text, rng.choice(variants), rng), rng)
            rows.append({"text": sentence.text, "language": sentence.language, "event": "Speech"})
        features.append(filterbank(samples))
    half = target.with_suffix(".half.npz")
    folder.mkdir(parents=True, exist_ok=True)
    frames = np.array([len(f) for f in features], np.int32)
    np.savez(
        half, frames=frames, features=np.concatenate(features), rows=np.array(json.dumps(rows, ensure_ascii=False))
    )
    half.replace(target)
    return float(frames.sum()) / FRAMES_A_SECOND


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.npz"


def read_shard(path: Path) -> Iterator[Utterance]:
    with np.load(path) as found:
        rows: list[dict[str, Any]] = json.loads(str(found["rows"]))
        features, frames = found["features"], found["frames"]
    start = 0
    for row, length in zip(rows, frames, strict=True):
        yield Utterance(row["text"], row["language"], row["event"], features[start : start + length])
        start += int(length)


def filterbank(samples: voices.Samples) -> Features:
    """Log-mel features (frames, 80) as sherpa-onnx computes them for SenseVoice: 25 ms Hamming windows every 10 ms."""
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.samp_freq = voices.RATE
    options.frame_opts.snip_edges = True
    options.frame_opts.window_type = "hamming"
    options.mel_opts.num_bins = MELS
    options.mel_opts.low_freq = 20
    options.mel_opts.high_freq = 0
    bank = kaldi_native_fbank.OnlineFbank(options)
    bank.accept_waveform(voices.RATE, (samples * 32768).tolist())
    bank.input_finished()
    found = np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)])
    return np.clip(np.round((found - FLOOR) / QUANTUM), 0, 255).astype(np.uint8)


def noise(rng: random.Random) -> voices.Samples:
    """1 to 5 seconds of coloured noise, from nearly silent to loud."""
    draws = np.random.default_rng(rng.getrandbits(32))
    samples = draws.standard_normal(int(voices.RATE * rng.uniform(1, 5)))
    samples = lfilter([1.0], [1.0, -rng.uniform(0.0, 0.97)], samples)
    return (samples / np.abs(samples).max() * 10 ** (rng.uniform(-60, -6) / 20)).astype(np.float32)


def music(rng: random.Random) -> voices.Samples:
    """2 to 5 seconds of plucked chords at a steady beat. Each note has a few decaying partials."""
    seconds, beat = rng.uniform(2, 5), rng.uniform(0.2, 0.6)
    out = np.zeros(int(voices.RATE * seconds), np.float32)
    key = rng.uniform(110, 330)
    for start in np.arange(0, seconds, beat):
        time_in_note = np.arange(int(voices.RATE * min(1.5, seconds - start))) / voices.RATE
        for step in rng.sample((0, 2, 4, 5, 7, 9, 12), rng.randint(1, 3)):
            pitch = key * 2 ** (step / 12)
            for partial in range(1, rng.randint(3, 6)):
                wave = np.sin(2 * np.pi * pitch * partial * time_in_note) / partial * np.exp(-time_in_note * 4)
                first = int(start * voices.RATE)
                out[first : first + len(wave)] += wave[: len(out) - first].astype(np.float32)
    return (out / (np.abs(out).max() + 1e-6) * 10 ** (rng.uniform(-25, -3) / 20)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=TRAIN_SHARDS + UNHEARD_SHARDS, help=f"{SHARD} utterances each")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    began, done = time.monotonic(), 0.0
    make_shard(options.work / "development", 0, voices.DEVELOPMENT_VARIANTS)
    with ProcessPoolExecutor(options.processes) as pool:
        made = pool.map(
            make_shard, repeat(options.work / "train"), range(options.shards), repeat(voices.TRAIN_VARIANTS)
        )
        for number, seconds in enumerate(made, 1):
            done += seconds
            spent = (time.monotonic() - began) / 60
            print(f"{number}/{options.shards} shards, {done / 3600:.1f} h of audio, {spent:.1f} min", flush=True)


if __name__ == "__main__":
    main()
