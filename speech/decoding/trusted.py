"""Decodes files of our own in this process: for benchmarks, training and tests. A service uses `speech.decoding.decoder`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from speech.decoding.child.channels import Samples
from speech.decoding.child.decode import decode
from speech.decoding.pcm import open_pcm


def samples(path: Path, *, max_seconds: float) -> Samples:
    """The whole file as float32 mono at 16 kHz in [-1, 1]. Raises `InvalidAudio`."""
    with tempfile.TemporaryDirectory(prefix="duet-") as folder:
        pcm = write_pcm(path, Path(folder, "decoded.pcm"), max_seconds=max_seconds)
        return np.asarray(open_pcm(pcm), np.float32) / np.float32(32767.0)


def write_pcm(path: Path, target: Path, *, max_seconds: float) -> Path:
    """The file as PCM (`speech.decoding.pcm`) in `target`, which is returned. Raises `InvalidAudio`."""
    return decode(path, target, max_seconds=max_seconds).files[0]
