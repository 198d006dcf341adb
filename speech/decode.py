"""Decodes audio files of any common kind to mono at 16 kHz, in bounded memory. PyAV carries its own FFmpeg.

The file is untrusted. Only the demuxer that fits its first bytes is tried, so a playlist cannot make FFmpeg open other
files or addresses. What its header claims (rate, channels, duration) is checked against bounds and against the audio.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from duet.errors import InvalidRequest
from speech.containers import declared_seconds, demuxers
from speech.splitter import SAMPLE_RATE

logger = logging.getLogger(__name__)

MIN_RATE, MAX_RATE = 4_000, 384_000
MAX_CHANNELS = 64
MIN_COMPLETE = 0.9
"""A file that gives less than this share of the duration it declares is truncated."""

_PADDING_SECONDS = 0.1
"""Codecs add or drop a frame or two at the ends."""

Samples = np.ndarray[Any, np.dtype[np.float32]]


class InvalidAudio(InvalidRequest):
    """The file is not usable audio. Names the parameter `file`."""

    code = "invalid_audio"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="file")


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
    with _opened(path) as (_, info):
        return info


def decode(path: Path, *, max_seconds: float, on_progress: Callable[[float], None] | None = None) -> Samples:
    """The whole file as float32 mono at 16 kHz in [-1, 1]. Raises `InvalidAudio`."""
    blocks = list(_blocks(path, max_seconds, on_progress))
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def decode_to_pcm(
    path: Path, target: Path, *, max_seconds: float, on_progress: Callable[[float], None] | None = None
) -> float:
    """Stream the file into `target` as signed 16-bit little-endian; returns its seconds. Memory does not grow with
    the file.

    `on_progress` is called with the seconds decoded so far. `target` is incomplete while this runs and after an error.
    """
    count = 0
    with target.open("wb") as file:
        for block in _blocks(path, max_seconds, on_progress):
            # Not tofile(): it hides a full disk, and the audio would silently end early.
            file.write(np.round(np.clip(block, -1.0, 1.0) * 32767.0).astype("<i2").data)
            count += len(block)
    return count / SAMPLE_RATE


def open_pcm(path: Path) -> np.ndarray[Any, np.dtype[np.int16]]:
    """A file that `decode_to_pcm` wrote, as a read-only memory map."""
    if path.stat().st_size == 0:
        return np.zeros(0, np.int16)
    return np.memmap(path, dtype="<i2", mode="r")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, AudioInfo]]:
    """The container and its first audio stream, by the first demuxer that can read it."""
    container = _open(path)
    try:
        yield container, _info(path, container)
    finally:
        container.close()


def _open(path: Path) -> Any:
    if path.stat().st_size == 0:
        raise InvalidAudio("the file is empty")
    for name in demuxers(path):
        try:
            # Only file: is allowed, also for what the container itself refers to.
            container = av.open(f"file:{path}", format=name, options={"protocol_whitelist": "file"})
        except (av.error.FFmpegError, ValueError) as error:
            logger.info("%s could not open the file: %s", name, error, extra={"action": "demuxer_refused"})
            continue
        if container.streams.audio:
            return container
        container.close()
        raise InvalidAudio("the file has no audio stream")
    raise InvalidAudio("the file is no audio that can be read (wav, mp3, m4a, flac, ogg, webm)")


def _info(path: Path, container: Any) -> AudioInfo:
    stream = container.streams.audio[0]
    rate, channels = stream.codec_context.sample_rate or 0, stream.codec_context.channels or 0
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InvalidAudio(f"a sample rate of {rate} Hz is outside {MIN_RATE} to {MAX_RATE} Hz")
    if not 1 <= channels <= MAX_CHANNELS:
        raise InvalidAudio(f"{channels} channels are outside 1 to {MAX_CHANNELS}")
    reported = None
    if stream.duration is not None and stream.time_base is not None:
        reported = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        reported = container.duration / 1_000_000
    name = container.format.name
    return AudioInfo(name, stream.codec_context.name, rate, channels, declared_seconds(path, name, reported))


def _blocks(path: Path, max_seconds: float, on_progress: Callable[[float], None] | None) -> Iterator[Samples]:
    """Mono blocks at 16 kHz. Raises `InvalidAudio` when the file is too long, truncated or broken."""
    with _opened(path) as (container, info):
        if info.duration_seconds is not None and info.duration_seconds > max_seconds:
            raise InvalidAudio(
                f"the audio is {info.duration_seconds:.0f} s long; at most {max_seconds:.0f} s are taken"
            )
        count, reported = 0, 0.0
        for block in _resampled(_frames(container), info.sample_rate):
            count += len(block)
            seconds = count / SAMPLE_RATE
            if seconds > max_seconds + _PADDING_SECONDS:
                raise InvalidAudio(f"the audio is longer than the {max_seconds:.0f} s that are taken")
            if on_progress and seconds - reported >= 10:
                reported = seconds
                on_progress(seconds)
            yield block
        seconds, declared = count / SAMPLE_RATE, info.duration_seconds or 0.0
        if count == 0:
            raise InvalidAudio("no audio could be decoded from the file")
        if seconds < MIN_COMPLETE * declared - _PADDING_SECONDS:
            raise InvalidAudio(f"the file is truncated: {seconds:.1f} s of its {declared:.1f} s could be decoded")


def _frames(container: Any) -> Iterator[Any]:
    """Decoded frames of the first audio stream. A damaged packet is left out, as players do.

    Raises `InvalidAudio` when the container breaks off before its last tenth, or when more packets are damaged than whole.
    """
    whole = damaged = position = 0
    packets = container.demux(container.streams.audio[0])
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.error.FFmpegError as error:
            if position < MIN_COMPLETE * container.size:
                raise InvalidAudio(f"the file is damaged after {position} of its {container.size} bytes") from error
            logger.info("the container ends early: %s", error, extra={"action": "decode_stopped"})
            break
        position = max(position, packet.pos or 0)
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            damaged += 1
            continue
        whole += 1
        yield from frames
    if damaged:
        logger.info("damaged packets left out", extra={"action": "decode_damaged", "whole": whole, "damaged": damaged})
    if damaged > whole:
        raise InvalidAudio("the file is damaged: less than half of it can be decoded")


def _resampled(frames: Iterator[Any], rate: int) -> Iterator[Samples]:
    """Averages the channels, then resamples: FFmpeg's own float downmix is louder than the mean by √2.

    A stream may change its format, layout or rate midway (chained Ogg, HE-AAC); each stretch gets its own converter.
    """
    to_16k = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)
    to_planar: Any = None
    shape: tuple[str, str, int] | None = None
    for frame in frames:
        seen = (frame.format.name, frame.layout.name, frame.sample_rate)
        if seen != shape:
            to_planar, shape = av.AudioResampler(format="fltp", rate=rate), seen
        frame.pts = None  # audio with broken time stamps is not stretched
        for planar in to_planar.resample(frame):
            for out in to_16k.resample(_as_frame(_clean(planar.to_ndarray()).mean(axis=0, dtype=np.float32), rate)):
                yield np.clip(out.to_ndarray()[0], -1.0, 1.0)
    for out in to_16k.resample(None):
        yield np.clip(out.to_ndarray()[0], -1.0, 1.0)


def _as_frame(mono: Samples, rate: int) -> Any:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(mono[None]), format="fltp", layout="mono")
    frame.sample_rate = rate
    return frame


def _clean(samples: Samples) -> Samples:
    """A float file may hold NaN or infinity, which the resampler would smear over its neighbours."""
    return np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)
