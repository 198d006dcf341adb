"""Audio files of any common kind become mono at 16 kHz, in bounded memory. PyAV carries its own FFmpeg.

The file is untrusted: only containers of the table below are tried, so that a playlist cannot make FFmpeg open other files
or addresses; claims of its header (rate, duration) are checked against bounds and against what comes out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from duet.errors import InvalidRequest
from speech.splitter import SAMPLE_RATE

logger = logging.getLogger(__name__)

CONTAINERS = ("wav", "mp3", "flac", "ogg", "matroska", "mov", "aac", "amr", "aiff", "caf", "w64")
"""FFmpeg's demuxers for wav, mp3, m4a/mp4, flac, ogg/opus, webm, aac, amr. No playlists, no devices, no protocols."""
MIN_RATE, MAX_RATE = 4_000, 384_000
MIN_COMPLETE = 0.9
"""A file that gives less than this share of the duration it declares is truncated."""

Samples = np.ndarray[Any, np.dtype[np.float32]]


class InvalidAudio(InvalidRequest):
    """The file is no audio that can be used. Names the parameter `file`."""

    code = "invalid_audio"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="file")


class _Unusable(Exception):
    """One demuxer cannot read the file."""


@dataclass(frozen=True)
class AudioInfo:
    """What the header declares. `duration_seconds` is None where the container does not say."""

    container: str
    codec: str
    sample_rate: int
    channels: int
    duration_seconds: float | None


def probe(path: Path) -> AudioInfo:
    """Read the header. Raises `InvalidAudio`."""
    with _open(path) as (_, info):
        return info


def decode(path: Path, *, max_seconds: float, on_progress: Callable[[float], None] | None = None) -> Samples:
    """The whole file as float32 mono at 16 kHz in [-1, 1]. Raises `InvalidAudio`."""
    blocks = list(_blocks(path, max_seconds, on_progress))
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def decode_to_pcm(
    path: Path, target: Path, *, max_seconds: float, on_progress: Callable[[float], None] | None = None
) -> float:
    """Stream the file into `target` as signed 16-bit little-endian; returns its seconds. Memory does not grow with it.

    `on_progress` is called with the seconds decoded so far. `target` is incomplete while this runs and after an error.
    """
    count = 0
    with target.open("wb") as file:
        for block in _blocks(path, max_seconds, on_progress):
            np.round(np.clip(block, -1.0, 1.0) * 32767.0).astype("<i2").tofile(file)
            count += len(block)
    return count / SAMPLE_RATE


def open_pcm(path: Path) -> np.ndarray[Any, np.dtype[np.int16]]:
    """A file of `decode_to_pcm` as a read-only memory map."""
    if path.stat().st_size == 0:
        return np.zeros(0, np.int16)
    return np.memmap(path, dtype="<i2", mode="r")


class _open:  # noqa: N801 - reads as the statement it is
    """The first audio stream of a file, by the first demuxer that can read it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> tuple[Any, AudioInfo]:
        self._container = _open_container(self._path)
        try:
            return self._container, _info(self._container)
        except BaseException:
            self._container.close()
            raise

    def __exit__(self, *_: object) -> None:
        self._container.close()


def _open_container(path: Path) -> Any:
    if path.stat().st_size == 0:
        raise InvalidAudio("the file is empty")
    for name in _guess(path):
        try:
            # file: and nothing else, also for what the container itself refers to.
            container = av.open(f"file:{path}", format=name, options={"protocol_whitelist": "file"})
        except (av.error.FFmpegError, ValueError, OSError):
            logger.debug("not %s", name)
            continue
        if container.streams.audio:
            return container
        container.close()
        raise InvalidAudio("the file has no audio stream")
    raise InvalidAudio("the file is no audio that can be read (wav, mp3, m4a, flac, ogg, webm)")


def _guess(path: Path) -> tuple[str, ...]:
    """Demuxers to try, by the file's first bytes; a name is not trusted."""
    with path.open("rb") as file:
        head = file.read(64)
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return ("wav",)
    if head[:4] == b"fLaC":
        return ("flac",)
    if head[:4] == b"OggS":
        return ("ogg",)
    if head[:4] == b"\x1aE\xdf\xa3":
        return ("matroska",)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return ("mov",)
    if head[:5] == b"#!AMR":
        return ("amr",)
    if head[:4] == b"FORM":
        return ("aiff",)
    if head[:4] == b"caff":
        return ("caf",)
    if head[:3] == b"ID3":
        return ("mp3", "aac")
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        # A sync word: layer bits 00 are ADTS AAC, others MPEG audio.
        return ("aac", "mp3") if head[1] & 0x06 == 0 else ("mp3",)
    return ()


def _info(container: Any) -> AudioInfo:
    stream = container.streams.audio[0]
    rate, channels = stream.codec_context.sample_rate or 0, stream.codec_context.channels or 0
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InvalidAudio(f"a sample rate of {rate} Hz is outside {MIN_RATE} to {MAX_RATE} Hz")
    if channels < 1:
        raise InvalidAudio("the audio has no channels")
    duration = None
    if stream.duration is not None and stream.time_base is not None:
        duration = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration = container.duration / 1_000_000
    return AudioInfo(container.format.name, stream.codec_context.name, rate, channels, duration)


def _blocks(path: Path, max_seconds: float, on_progress: Callable[[float], None] | None) -> Iterator[Samples]:
    """Mono blocks at 16 kHz. Raises `InvalidAudio` when the file is too long, truncated or broken."""
    with _open(path) as (container, info):
        if info.duration_seconds is not None and info.duration_seconds > max_seconds:
            raise InvalidAudio(
                f"the audio is {info.duration_seconds:.0f} s long; at most {max_seconds:.0f} s are taken"
            )
        count, reported, broken = 0, 0.0, False
        try:
            for block in _resampled(container, info.sample_rate):
                count += len(block)
                seconds = count / SAMPLE_RATE
                if seconds > max_seconds:
                    raise InvalidAudio(f"the audio is longer than the {max_seconds:.0f} s that are taken")
                if on_progress and seconds - reported >= 10:
                    reported = seconds
                    on_progress(seconds)
                yield block
        except (av.error.FFmpegError, ValueError, IndexError) as error:
            logger.info("decoding stopped early: %s", error, extra={"action": "decode_stopped"})
            broken = True
        seconds = count / SAMPLE_RATE
        if count == 0:
            raise InvalidAudio("no audio could be decoded from the file")
        declared = info.duration_seconds or 0.0
        if seconds < MIN_COMPLETE * declared - 0.1:
            raise InvalidAudio(f"the file is truncated: {seconds:.1f} s of its {declared:.1f} s could be decoded")
        if broken and not declared:
            raise InvalidAudio(f"the file is damaged after {seconds:.1f} s")


def _resampled(container: Any, rate: int) -> Iterator[Samples]:
    """Channels averaged first, then resampled: FFmpeg's own float downmix is louder than their mean by √2."""
    to_planar, to_16k = None, av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    for frame in container.decode(audio=0):
        if to_planar is None:
            to_planar = av.AudioResampler(format="fltp", rate=rate)
        for planar in to_planar.resample(frame):
            mono = _as_frame(planar.to_ndarray().mean(axis=0, dtype=np.float32), rate)
            for out in to_16k.resample(mono):
                yield _clean(out.to_ndarray()[0])
    for out in to_16k.resample(None):
        yield _clean(out.to_ndarray()[0])


def _as_frame(mono: Samples, rate: int) -> Any:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(mono[None]), format="fltp", layout="mono")
    frame.sample_rate = rate
    return frame


def _clean(samples: Samples) -> Samples:
    """A float file may hold NaN or infinity, which would poison every later step."""
    return np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
