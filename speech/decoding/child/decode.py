"""Decodes files of any common kind to mono PCM at 16 kHz, in bounded memory, in a process of its own.

`python -m speech.decoding.child.decode --fd N`

The file is untrusted: it may end or stall this process, which must not be a service. What its header claims is checked
against bounds and against the audio.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av
import av.error
import numpy as np

from duet.channel import BlockingChannel, ChannelClosed
from speech.decoding.child import tracks
from speech.decoding.child.channels import Mix, Samples, Survey, choose, lively_share
from speech.decoding.child.messages import Channels, Decode, Decoded, DecodeFailed, Probe, Probed
from speech.decoding.child.timeline import Timeline
from speech.decoding.errors import InvalidAudio, TooLong
from speech.splitter import SAMPLE_RATE

MAX_EACH = 8
"""Channels that can be decoded each for itself."""
_PADDING_SECONDS = 0.25
"""Codecs add or drop a frame or two at the ends."""
_PADDING_SHARE = 0.01
_SURELY_SPEECH, _HARDLY_SPEECH = 0.2, 0.2
"""A track that is lively in this share of its time is speech or music. One with less is passed over when another is five times
as lively."""
_SILENCE_SECONDS = 10.0
"""Silence is written in pieces of this length."""


@dataclass(frozen=True)
class Pass:
    """What one pass over a track wrote and found."""

    seconds: float
    truncated: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Track:
    """A track that was read once. `survey` is None where there is nothing to choose."""

    number: int
    known: tracks.Facts
    written: Pass
    survey: Survey | None

    def mix(self) -> Mix:
        return Mix() if self.survey is None else choose(self.survey.levels(), self.survey.covariances())

    def lively(self) -> float:
        return 1.0 if self.survey is None else lively_share(self.survey.levels())


@dataclass(frozen=True)
class Result:
    """See `speech.decoding.decoder.Decoded`."""

    seconds: float
    files: tuple[Path, ...]
    truncated: str | None
    notes: tuple[str, ...]


def main() -> int:
    parser = argparse.ArgumentParser(prog="speech.decoding.child.decode", description="Decodes audio files.")
    parser.add_argument("--fd", type=int, required=True)
    arguments = parser.parse_args()
    channel: BlockingChannel[Decode | Probe] = BlockingChannel.from_fd(arguments.fd, Decode | Probe)
    with contextlib.suppress(ChannelClosed):
        while True:
            channel.send(_answered(channel.receive()))
    return 0


def _answered(request: Decode | Probe) -> Decoded | Probed | DecodeFailed:
    try:
        path = Path(os.fsdecode(request.path))
        if isinstance(request, Probe):
            return Probed(request.id, probe(path))
        target = Path(os.fsdecode(request.target))
        found = decode(path, target, max_seconds=request.max_seconds, channels=request.channels)
    except InvalidAudio as error:
        return DecodeFailed(request.id, "file", error.message)
    except av.error.FFmpegError as error:  # many are OSErrors too, and none is the disk's
        return DecodeFailed(request.id, "file", f"the file is damaged: {error.strerror or type(error).__name__}")
    except MemoryError:
        return DecodeFailed(request.id, "memory", "not enough memory")
    except OSError as error:
        return DecodeFailed(request.id, "disk", error.strerror or type(error).__name__)
    return Decoded(request.id, found.seconds, tuple(map(os.fsencode, found.files)), found.truncated, found.notes)


def probe(path: Path) -> float | None:
    """The duration that the header declares; None when it does not say. Raises `InvalidAudio`."""
    with tracks.opened(path) as container:
        numbers = tracks.in_order(container)
        refused: InvalidAudio | None = None
        for number in numbers:
            try:
                return tracks.facts(path, container, number).ends_at
            except InvalidAudio as error:
                refused = refused or error
    assert refused is not None
    raise refused


def decode(path: Path, target: Path, *, max_seconds: float, channels: Channels = "mix") -> Result:
    """Write `path` to `target` as 16-bit mono PCM, or with "each" one file a channel.

    The first pass writes the mean of one track's channels and measures them. Further passes follow only when that mean is
    not what is to be heard, so that most files are read once. Raises `InvalidAudio` and OSError.
    """
    with tracks.opened(path) as container:
        count, numbers = len(container.streams.audio), tracks.in_order(container)
        first, others = _first(path, container, numbers, target, max_seconds)
    track = _liveliest(path, first, others, max_seconds)
    notes = _of_tracks(track.number, first.number, count)
    if channels == "each" and track.known.channels > 1:
        return _each(path, track, target, max_seconds, notes)
    mix, written = track.mix(), track.written
    if track is not first or mix.weights is not None:
        written = _again(path, track, mix, [target], max_seconds)
    notes = (*notes, *([mix.note] if mix.note else ()))
    return Result(written.seconds, (target,), written.truncated, (*notes, *written.notes))


def _first(
    path: Path, container: Any, numbers: Sequence[int], target: Path, max_seconds: float
) -> tuple[Track, list[int]]:
    """The first of these tracks that can be read, and those that come after it. `container` is used for the first of all, since
    to open a file again costs as much as a clip. Raises what is wrong with that one when none can be read."""
    refused: InvalidAudio | None = None
    for place, number in enumerate(numbers):
        opened = contextlib.nullcontext(container) if place == 0 else tracks.opened(path)
        try:
            with opened as fresh:
                track = _read(path, fresh, number, [target], max_seconds, alone=len(numbers) == 1)
            return track, list(numbers[place + 1 :])
        except TooLong:
            raise
        except InvalidAudio as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _read(
    path: Path, container: Any, number: int, targets: Sequence[Path], max_seconds: float, *, alone: bool = False
) -> Track:
    """Write the mean of a track's channels, and measure it unless it is `alone` and has one."""
    known = tracks.facts(path, container, number)
    survey = None if alone and known.channels == 1 else Survey(known.channels, known.rate)
    return Track(number, known, _write(container, number, known, Mix(), targets, max_seconds, survey), survey)


def _again(path: Path, track: Track, mix: Mix | None, targets: Sequence[Path], max_seconds: float) -> Pass:
    with tracks.opened(path) as container:
        return _write(container, track.number, track.known, mix, targets, max_seconds, None)


def _liveliest(path: Path, first: Track, others: Sequence[int], max_seconds: float) -> Track:
    """The first track, unless it holds hardly anything like speech and a later one does."""
    if not others or first.lively() >= _SURELY_SPEECH:
        return first
    found = [first]
    for number in others:
        with contextlib.suppress(InvalidAudio), tracks.opened(path) as container:
            found.append(_read(path, container, number, [], max_seconds))
    most = max(track.lively() for track in found)
    return next(track for track in found if track.lively() >= _HARDLY_SPEECH * most)


def _of_tracks(taken: int, first: int, count: int) -> tuple[str, ...]:
    if count == 1:
        return ()
    if taken != first:
        return (f"audio track {first + 1} of {count} holds hardly any speech: track {taken + 1} was taken",)
    return (f"audio track {taken + 1} of {count} was taken, the others were left out",)


def _each(path: Path, track: Track, target: Path, max_seconds: float, notes: tuple[str, ...]) -> Result:
    count = track.known.channels
    if count > MAX_EACH:
        raise InvalidAudio(f"channels=each takes at most {MAX_EACH} channels; this file has {count}")
    target.unlink()
    targets = [target.with_name(f"{target.name}.{c + 1}") for c in range(count)]
    written = _again(path, track, None, targets, max_seconds)
    return Result(written.seconds, tuple(targets), written.truncated, (*notes, *written.notes))


def _write(
    container: Any, track: int, known: tracks.Facts, mix: Mix | None, targets: Sequence[Path], max_seconds: float,
    survey: Survey | None,
) -> Pass:  # fmt: skip
    """One pass: `mix` of the channels into the only target, or each channel into its own when it is None. Without targets it
    only measures."""
    if known.ends_at is not None and known.ends_at > max_seconds:
        raise TooLong(f"the audio is {known.ends_at:.0f} s long; at most {max_seconds:.0f} s are taken")
    reading, timeline, count = tracks.Reading(), Timeline(), 0
    with contextlib.ExitStack() as stack:
        files: list[BinaryIO] = [stack.enter_context(target.open("wb")) for target in targets]
        outputs = [_Output(file, known.rate) for file in files]
        blocks = _blocks(timeline.placed(reading.frames(container, track, known)), known)
        for block in blocks:
            count += len(block)
            if count > (max_seconds + _PADDING_SECONDS) * known.rate:
                raise TooLong(f"the audio is longer than the {max_seconds:.0f} s that are taken")
            if survey is not None:
                survey.add(block)
            for output, samples in zip(outputs, _mixed(block, mix, len(outputs)), strict=True):
                output.add(samples)
        for output in outputs:
            output.end()
    if survey is not None:
        survey.end()
    if count == 0:
        raise InvalidAudio("no audio could be decoded from the file")
    seconds = outputs[0].count / SAMPLE_RATE if outputs else count / known.rate
    return Pass(seconds, _truncated(seconds, known, reading), timeline.notes)


def _mixed(block: Samples, mix: Mix | None, count: int) -> Iterable[Samples]:
    """The samples of each output; `block` is [samples, channels]."""
    if count == 0:
        return ()
    if mix is None:
        return [block[:, min(c, block.shape[1] - 1)] for c in range(count)]
    if mix.weights is None or len(mix.weights) != block.shape[1]:
        # A channel in a row: five times as fast as the mean of many short rows.
        return (np.ascontiguousarray(block.T).mean(axis=0, dtype=np.float32),)
    return (block @ np.asarray(mix.weights, np.float32),)


def _truncated(seconds: float, known: tracks.Facts, reading: tracks.Reading) -> str | None:
    """Why the file is not whole, judged by its audio alone; None if it is."""
    if (
        known.promised
        and known.ends_at is not None
        and seconds < known.ends_at * (1 - _PADDING_SHARE) - _PADDING_SECONDS
    ):
        return f"the file is truncated: {seconds:.1f} s of its {known.ends_at:.1f} s could be decoded"
    if known.breaks_off or reading.broke_off:
        return f"the file is truncated: it breaks off after {seconds:.1f} s"
    return None


def _blocks(placed: Iterator[tuple[float, Any]], known: tracks.Facts) -> Iterator[Samples]:
    """float32 [samples, channels] at the track's declared rate, with silence where there is a gap.

    A stream may change its format, layout or rate midway (chained Ogg, HE-AAC); each stretch gets its own converter. Packed
    samples are in one plane: PyAV reads past the end of a frame that has more than eight.
    """
    convert: Any = None
    shape: tuple[str, str, int] | None = None
    channels = known.channels
    for silence, frame in placed:
        seen = (frame.format.name, frame.layout.name, frame.sample_rate)
        if seen != shape:
            if convert is not None:
                yield from _packed(convert.resample(None), channels)
            convert, shape, channels = (
                av.AudioResampler(format="flt", rate=known.rate),
                seen,
                len(frame.layout.channels),
            )
        yield from _silence(silence, known.rate, channels)
        frame.pts = None
        yield from _packed(convert.resample(frame), channels)
    if convert is not None:
        yield from _packed(convert.resample(None), channels)


def _packed(frames: Iterable[Any], channels: int) -> Iterator[Samples]:
    for frame in frames:
        samples: Samples = frame.to_ndarray().reshape(-1, channels)
        # A float file may hold NaN or infinity, which the resampler would smear over its neighbours.
        yield np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)


def _silence(seconds: float, rate: int, channels: int) -> Iterator[Samples]:
    left = round(seconds * rate)
    while left > 0:
        piece = min(left, round(_SILENCE_SECONDS * rate))
        yield np.zeros((piece, channels), np.float32)
        left -= piece


class _Output:
    """One file of PCM. FFmpeg's own float downmix is louder than the mean by √2, so it gets one channel."""

    def __init__(self, file: BinaryIO, rate: int) -> None:
        self._file, self._rate, self.count = file, rate, 0
        self._to_16k = av.AudioResampler(format="fltp", layout="mono", rate=SAMPLE_RATE)

    def add(self, samples: Samples) -> None:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
        frame.sample_rate = self._rate
        self._write(self._to_16k.resample(frame))

    def end(self) -> None:
        self._write(self._to_16k.resample(None))

    def _write(self, frames: Iterable[Any]) -> None:
        for frame in frames:
            samples = np.clip(frame.to_ndarray()[0], -1.0, 1.0)
            # Not tofile(): it hides a full disk, and the audio would silently end early.
            self._file.write(np.round(samples * 32767.0).astype("<i2").data)
            self.count += len(samples)


if __name__ == "__main__":
    sys.exit(main())
