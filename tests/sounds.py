"""Audio that tests make for themselves: tones, WAV headers byte by byte, and files of every container that PyAV writes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np

RATE = 16_000
Samples = np.ndarray[Any, np.dtype[np.float32]]


def tone(seconds: float, *, hertz: float = 440.0, amplitude: float = 0.3, rate: int = RATE) -> Samples:
    """A sine, float32 mono."""
    time = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def root_mean_square(samples: np.ndarray[Any, np.dtype[Any]]) -> float:
    return float(np.sqrt(np.mean(np.square(samples.astype(np.float64)))))


def wav(
    data: bytes,
    *,
    rate: int = RATE,
    channels: int = 1,
    bits: int = 16,
    coding: int = 1,
    data_bytes: int | None = None,
) -> bytes:
    """A WAV file whose header says what it is told to. `coding` 1 is integer PCM, 3 is float."""
    block = channels * bits // 8
    length = len(data) if data_bytes is None else data_bytes
    head = struct.pack("<IHHIIHH", 16, coding, channels, rate, (rate * block) & 0xFFFFFFFF, block, bits)
    riff = min(36 + length, 0xFFFFFFFF)
    return b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + head + b"data" + struct.pack("<I", length) + data


def pcm(samples: Samples) -> bytes:
    """Interleaved signed 16-bit little-endian; `samples` is (frames,) or (channels, frames)."""
    return np.round(np.atleast_2d(samples).T * 32767).astype("<i2").tobytes()


# name: (encoder, container, rate)
FORMATS: dict[str, tuple[str, str, int]] = {
    "wav": ("pcm_s16le", "wav", 16_000),
    "mp3": ("libmp3lame", "mp3", 44_100),
    "m4a": ("aac", "ipod", 44_100),
    "flac": ("flac", "flac", 44_100),
    "opus": ("libopus", "ogg", 48_000),
    "webm": ("libopus", "webm", 48_000),
    "aac": ("aac", "adts", 44_100),
}


def write(
    path: Path, samples: Samples, *, kind: str, rate: int | None = None, options: Mapping[str, str] | None = None
) -> Path:
    """Encode (channels, frames) or mono samples, given at the rate of `FORMATS[kind]` or `rate`."""
    codec, container_format, default_rate = FORMATS[kind]
    rate = rate or default_rate
    planar = np.ascontiguousarray(np.atleast_2d(samples), dtype=np.float32)
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(planar)]
    with av.open(str(path), "w", format=container_format, options=dict(options or {})) as container:
        stream: Any = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(planar, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        converter = av.AudioResampler(format=stream.format, layout=layout, rate=rate)
        for converted in (*converter.resample(frame), *converter.resample(None)):
            container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    return path
