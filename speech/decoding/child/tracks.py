"""Opens a file, and knows the facts about its audio tracks. PyAV carries its own FFmpeg.

Only the demuxer that fits the file's first bytes is tried, so a playlist cannot make FFmpeg open other files or addresses.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
from av.stream import Disposition

from speech.decoding.child.containers import breaks_off, declared_seconds, demuxers, lacks_its_index
from speech.decoding.child.timeline import Timed
from speech.decoding.errors import InvalidAudio

logger = logging.getLogger(__name__)

MIN_RATE, MAX_RATE = 4_000, 384_000
MAX_CHANNELS = 64
MAX_TRACKS = 8
"""Audio tracks that are looked at."""
_BESIDE = Disposition.comment | Disposition.visual_impaired | Disposition.karaoke | Disposition.clean_effects
"""Marks of tracks that are not the recording itself, or not all of it."""
MIN_COMPLETE = 0.9
_HAVE_TIMES = ("mov", "matroska", "ogg")
"""Demuxers whose time stamps are the file's own. Others count samples or guess."""
_OPTIONS = {"wav": {"probesize": "65536"}}
"""FFmpeg looks for DTS and the like in PCM, for 17 ms in a clip. Its first frames tell."""
_CLOCK = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


@dataclass(frozen=True)
class Facts:
    """What the file says of a track. `zero` is where its times count from. `ends_at` is in seconds from there, and None when
    nothing tells when this track's audio ends. `promised`: audio that ends before that is cut. `breaks_off`: the file is
    cut, and its audio with it."""

    rate: int
    channels: int
    has_times: bool
    zero: float
    ends_at: float | None
    promised: bool
    breaks_off: bool


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The container, which has an audio track. Raises `InvalidAudio`."""
    container = _open(path)
    try:
        yield container
    finally:
        container.close()


def _open(path: Path) -> Any:
    if path.stat().st_size == 0:
        raise InvalidAudio("the file is empty")
    for name in demuxers(path):
        try:
            # Only file: is allowed, also for what the container itself refers to.
            options = {"protocol_whitelist": "file", **_OPTIONS.get(name, {})}
            container = av.open(f"file:{path}", format=name, options=options)
        except (av.error.FFmpegError, ValueError) as error:
            logger.info("%s could not open the file: %s", name, error, extra={"action": "demuxer_refused"})
            continue
        if container.streams.audio:
            _forget_channel_order(container)
            return container
        container.close()
        raise InvalidAudio("the file has no audio stream")
    if "mov" in demuxers(path) and lacks_its_index(path):
        raise InvalidAudio(
            "the file is truncated: it ends before its index (moov), without which its audio cannot be found"
        )
    raise InvalidAudio(
        "the file is no audio that can be read (wav, mp3, m4a, mp4, flac, ogg, webm, mkv, aac, amr, aiff, caf)"
    )


def _forget_channel_order(container: Any) -> None:
    """CAF, AIFF and MOV may give their channels in any order, as a map in memory. PyAV's layouts share that map and each frees
    it, which ends the process. The first look at a layout is therefore followed by one without a map: only the number of
    channels matters here."""
    for stream in container.streams.audio:
        codec = stream.codec_context
        if codec is not None and (channels := codec.channels) > 0:
            codec.layout = f"{channels} channels"


def in_order(container: Any) -> list[int]:
    """The audio tracks as a player prefers them: those that the file marks as its default come first, and commentary last."""
    marks = [stream.disposition for stream in container.streams.audio]
    found = sorted(range(len(marks)), key=lambda n: (bool(marks[n] & _BESIDE), not marks[n] & Disposition.default))
    return found[:MAX_TRACKS]


def facts(path: Path, container: Any, track: int) -> Facts:
    """Raises `InvalidAudio` for an unknown codec, and for a rate or a number of channels that is out of bounds."""
    stream = container.streams.audio[track]
    codec = stream.codec_context
    if codec is None:
        raise InvalidAudio(
            "the audio is in a codec that cannot be read here: convert it, to FLAC, MP3 or AAC for instance"
        )
    rate, channels = codec.sample_rate or 0, codec.channels or 0
    if not MIN_RATE <= rate <= MAX_RATE:
        raise InvalidAudio(f"a sample rate of {rate} Hz is outside {MIN_RATE} to {MAX_RATE} Hz")
    if not 1 <= channels <= MAX_CHANNELS:
        raise InvalidAudio(f"{channels} channels are outside 1 to {MAX_CHANNELS}")
    name = _family(container)
    zero = _zero(container, name)
    ends_at = _declared_end(path, container, stream, name, zero)
    # Of Matroska the pictures may be cut alone. The end that FFmpeg tells of Ogg and CAF is that of what is there.
    cut = (ends_at is None or name != "matroska") and breaks_off(path, name)
    # The end of an Ogg file's last page tells nothing of what lies before it: a chain begins anew, and may change its rate.
    return Facts(rate, channels, name in _HAVE_TIMES, zero, ends_at, name != "ogg", cut)


def _family(container: Any) -> str:
    """The demuxer's name: `mov` of "mov,mp4,m4a,3gp,3g2,mj2"."""
    name: str = container.format.name
    return name.split(",")[0]


def _zero(container: Any, name: str) -> float:
    """Where players count from. An edit list of MP4 counts from 0. The others may begin anywhere (a stream that was recorded
    from its middle), and count from the first track's first time stamp."""
    if name == "mov" or container.start_time is None:
        return 0.0
    return float(container.start_time / av.time_base)


def _declared_end(path: Path, container: Any, stream: Any, name: str, zero: float) -> float | None:
    """Matroska knows one duration, that of its longest track, but FFmpeg and mkvmerge note each track's own as a tag. With
    one track the two are the same."""
    if name == "matroska":
        if found := _CLOCK.search(stream.metadata.get("DURATION", "")):
            hours, minutes, seconds = found.groups()
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds) - zero
        alone = len(container.streams) == 1 and container.duration is not None
        return float(container.duration) / av.time_base if alone else None
    start, reported = 0.0, None
    if stream.duration is not None and stream.time_base is not None:
        # Of Opus in Ogg, FFmpeg reports the end where it means the length.
        counted = name in _HAVE_TIMES and (name, stream.codec_context.name) != ("ogg", "opus")
        start = float((stream.start_time or 0) * stream.time_base) if counted else 0.0
        reported = float(stream.duration * stream.time_base)
    elif container.duration is not None and len(container.streams) == 1:
        reported = container.duration / av.time_base
    declared = declared_seconds(path, name, reported)
    return None if declared is None else start - (zero if name in _HAVE_TIMES else 0.0) + declared


@dataclass
class Reading:
    """One pass over a track: what could not be read. `broke_off`: the demuxer stopped before the last tenth of the file."""

    whole: int = 0
    damaged: int = 0
    broke_off: bool = False
    _position: int = 0

    def frames(self, container: Any, track: int, known: Facts) -> Iterator[Timed[Any]]:
        """Decoded frames. A damaged packet is left out, as players do.

        Raises `InvalidAudio` when more packets are damaged than whole.
        """
        packets = container.demux(container.streams.audio[track])
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except av.error.FFmpegError as error:
                self.broke_off = self._position < MIN_COMPLETE * container.size
                logger.info("the container ends early: %s", error, extra={"action": "decode_stopped"})
                break
            self._position = max(self._position, packet.pos or 0)
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                self.damaged += 1
                continue
            self.whole += 1
            yield from (_timed(frame, known) for frame in frames)
        if self.damaged > self.whole:
            raise InvalidAudio("the file is damaged: less than half of it can be decoded")


def _timed(frame: Any, known: Facts) -> Timed[Any]:
    if not MIN_RATE <= frame.sample_rate <= MAX_RATE:
        raise InvalidAudio(f"a sample rate of {frame.sample_rate} Hz is outside {MIN_RATE} to {MAX_RATE} Hz")
    start = None
    if known.has_times and frame.pts is not None and frame.time_base is not None:
        start = float(frame.pts * frame.time_base) - known.zero
    return Timed(start, frame.samples / frame.sample_rate, frame)
