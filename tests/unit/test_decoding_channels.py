"""Which channels and which track hold what is to be heard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from speech.decoding.child.channels import Mix, Survey, choose, lively_share
from speech.decoding.child.decode import decode
from speech.decoding.pcm import open_pcm
from tests import sounds

RATE = 16_000
RANDOM = np.random.default_rng(7)


def lively(seconds: float = 6.0, seed: int = 1) -> Any:
    """Noise in syllables of changing loudness: what speech looks like to a level meter."""
    random = np.random.default_rng(seed)
    envelope = np.repeat(random.choice([0.0, 0.02, 0.1, 0.3], int(seconds * 10)), RATE // 10)
    return (envelope * random.standard_normal(len(envelope))).astype(np.float32)


def steady(level: float, seconds: float = 6.0, seed: int = 2) -> Any:
    return (level * np.random.default_rng(seed).standard_normal(int(seconds * RATE))).astype(np.float32)


def coloured(power: float, seconds: float = 6.0) -> Any:
    """Noise whose level falls with frequency: 1 is pink, 2 is brown."""
    shape = np.maximum(np.arange(int(seconds * RATE) // 2 + 1), 1.0) ** (-power / 2)
    noise = np.fft.irfft(shape * np.fft.rfft(steady(1.0, seconds)))
    return (0.3 * noise / np.abs(noise).max()).astype(np.float32)


def within(seconds: float, clip: Any, at: float) -> Any:
    """`clip` in a recording of digital silence."""
    whole = np.zeros(int(seconds * RATE), np.float32)
    whole[int(at * RATE) : int(at * RATE) + len(clip)] = clip
    return whole


SPEECH, OTHER, NOISE, NOTHING = lively(), lively(seed=5), steady(0.05), np.zeros(6 * RATE, np.float32)
RARE, WORD, BUSY = within(600.0, SPEECH, 300.0), within(600.0, SPEECH[8000:14_400], 100.0), lively(600.0, seed=8)
QUIET_THEN_LOUD = np.concatenate([0.1 * lively(20.0), lively(20.0, seed=6)])
INVERSE_FIRST = np.repeat(np.array([-1.0, 1.0], np.float32), 20 * RATE)
HALF = np.concatenate([SPEECH[: 3 * RATE], -SPEECH[3 * RATE :]])


def chosen(*channels: Any) -> Mix:
    survey = Survey(len(channels), RATE)
    block = np.stack(channels, axis=1).astype(np.float32)
    for start in range(0, len(block), 1234):
        survey.add(block[start : start + 1234])
    survey.end()
    return choose(survey.levels(), survey.covariances())


CASES: dict[str, tuple[tuple[Any, ...], tuple[float, ...] | None]] = {
    "one channel": ((SPEECH,), None),
    "the same twice": ((SPEECH, SPEECH), None),
    "two speakers": ((SPEECH, OTHER), None),
    "a stereo room": ((SPEECH + 0.3 * OTHER, OTHER + 0.3 * SPEECH), None),
    "nothing at all": ((NOTHING, NOTHING), None),
    "noise alone": ((NOISE, steady(0.05, seed=9)), None),
    "inverse": ((SPEECH, -SPEECH), (0.5, -0.5)),
    "nearly inverse": ((SPEECH, -0.97 * SPEECH), (0.5, -0.5)),
    "inverse and weaker": ((SPEECH, -0.6 * SPEECH), (0.5, -0.5)),
    "inverse in its second half": ((SPEECH, HALF), (1.0, 0.0)),
    "inverse first": ((-0.9 * SPEECH, SPEECH), (-0.5, 0.5)),
    "left alone": ((SPEECH, NOTHING), (1.0, 0.0)),
    "right alone": ((NOTHING, SPEECH), (0.0, 1.0)),
    "noise beside it": ((NOISE, SPEECH), (0.0, 1.0)),
    "loud noise beside quiet speech": ((steady(0.3), 0.2 * SPEECH), (0.0, 1.0)),
    "hum beside it": ((sounds.tone(6.0, hertz=50), SPEECH), (0.0, 1.0)),
    "one of eight": ((NOTHING,) * 5 + (SPEECH,) + (NOTHING,) * 2, (0, 0, 0, 0, 0, 1.0, 0, 0)),
    "one of four, noise in the others": ((NOISE, steady(0.05, seed=3), SPEECH, steady(0.05, seed=4)), (0, 0, 1.0, 0)),
    "three, one inverse": ((SPEECH, SPEECH, -2 * SPEECH), (-1 / 3, -1 / 3, 1 / 3)),
    "brown noise beside it": ((coloured(2), SPEECH), (0.0, 1.0)),
    "pink noise beside it": ((SPEECH, coloured(1)), (1.0, 0.0)),
    "inverse, with a constant voltage": ((SPEECH + 0.3, 0.3 - SPEECH), (0.5, -0.5)),
    "inverse, with hum on both": (
        (SPEECH + sounds.tone(6.0, hertz=50), sounds.tone(6.0, hertz=50) - SPEECH),
        (0.5, -0.5),
    ),
    "four, each the inverse of another": ((SPEECH, OTHER, -SPEECH, -OTHER), (0.25, 0.25, -0.25, -0.25)),
    "six seconds in ten minutes, inverse": ((RARE, -RARE), (0.5, -0.5)),
    "six seconds in ten minutes, one channel": ((RARE, 0 * RARE), (1.0, 0.0)),
    "six seconds in ten minutes beside noise": ((RARE, steady(0.05, 600.0)), (1.0, 0.0)),
    "six seconds in ten minutes over noise, beside noise": (
        (RARE + steady(0.01, 600.0), steady(0.05, 600.0)),
        (1.0, 0.0),
    ),
    "six seconds in ten minutes beside somebody who always talks": ((RARE, BUSY), None),
    "the same over noise": ((RARE + steady(0.002, 600.0), BUSY), None),
    "one word in ten minutes beside somebody who always talks": ((WORD + steady(0.002, 600.0), BUSY), None),
    "quiet and inverse, then loud and plain": ((QUIET_THEN_LOUD, QUIET_THEN_LOUD * INVERSE_FIRST), (1.0, 0.0)),
    "twenty, one of them": ((NOISE,) * 19 + (SPEECH,), (0.0,) * 19 + (1.0,)),
}


@pytest.mark.parametrize("name", CASES)
def test_which_channels_are_summed_up(name: str) -> None:
    channels, weights = CASES[name]
    mix = chosen(*channels)
    assert mix.weights == (None if weights is None else pytest.approx(weights))
    silent = sum(not channel.any() for channel in channels)
    assert (mix.note is None) == (weights is None or silent == len(channels) - 1)


@pytest.mark.parametrize("shift", [-15.0, -30.0])
@pytest.mark.parametrize("name", CASES)
def test_the_choice_does_not_depend_on_the_level(name: str, shift: float) -> None:
    channels, weights = CASES[name]
    gain = 10 ** (shift / 20)
    mix = chosen(*(gain * channel for channel in channels))
    assert mix.weights == (None if weights is None else pytest.approx(weights))


def test_who_speaks_in_one_channel_alone_is_kept_although_others_cancel() -> None:
    """Two people, a channel each, and a jingle that is inverse. Another jingle is not: no signs help."""
    one, other, jingle = (within(60.0, clip, at) for clip, at in ((SPEECH, 5), (OTHER, 30), (lively(6.0, seed=9), 50)))
    assert chosen(one + jingle, other - jingle).weights == pytest.approx((0.5, -0.5))
    also = within(60.0, lively(6.0, seed=10), 20)
    mix = chosen(one + jingle + also, other - jingle + also)
    assert mix == Mix(None, "the channels cancel each other in places")


def test_speech_is_neither_silent_nor_steady() -> None:
    def levels(samples: Any) -> Any:
        survey = Survey(1, RATE)
        survey.add(samples[:, None])
        survey.end()
        return survey.levels()

    for speech in (SPEECH, 0.01 * SPEECH, SPEECH + steady(0.01)):
        assert lively_share(levels(speech)) > 0.9
    assert 0.005 < lively_share(levels(RARE + steady(0.01, 600.0))) < 0.03
    click = within(60.0, np.ones(100, np.float32), 3.0)
    for nothing in (
        NOTHING,
        NOISE,
        sounds.tone(6.0),
        steady(1e-5),
        coloured(1),
        coloured(2),
        click,
        steady(0.01, 0.02),
    ):
        assert lively_share(levels(nothing)) == 0


def tracks(path: Path, *each: Any, marks: Sequence[Disposition] = ()) -> Path:
    """`marks` of the tracks; an empty track has no packets."""
    with av.open(str(path), "w") as container:
        streams: list[Any] = [container.add_stream("flac", rate=RATE, layout="mono") for _ in each]
        for stream, mark in zip(streams, marks, strict=False):
            stream.disposition = mark
        for stream, samples in zip(streams, each, strict=True):
            if len(samples) == 0:
                continue
            frame = av.AudioFrame.from_ndarray(sounds_16(samples)[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, 0
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def sounds_16(samples: Any) -> Any:
    return np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)


EMPTY = np.zeros(0, np.float32)
TRACKS: dict[str, tuple[tuple[Any, ...], int, str]] = {
    "an empty first track": ((EMPTY, SPEECH), 1, "track 2 of 2 was taken"),
    "a click in the first track": (
        (within(60.0, np.ones(100, np.float32), 3.0), within(60.0, SPEECH, 9.0)),
        1,
        "track 2 was",
    ),
    "speech for a moment in the first track alone": (
        (within(60.0, SPEECH, 9.0), NOTHING),
        0,
        "the others were left out",
    ),
    "a silent first track": ((NOTHING, SPEECH), 1, "track 2 was taken"),
    "a first track of noise": ((NOISE, NOTHING, SPEECH), 2, "track 3 was taken"),
    "speech and a commentary": ((SPEECH, OTHER), 0, "the others were left out"),
    "nothing anywhere": ((NOTHING, NOTHING), 0, "the others were left out"),
}


@pytest.mark.parametrize("name", TRACKS)
def test_the_first_track_that_may_hold_speech_is_taken(tmp_path: Path, name: str) -> None:
    each, taken, note = TRACKS[name]
    found = decode(tracks(tmp_path / "a.mka", *each), tmp_path / "a.pcm", max_seconds=60)
    np.testing.assert_allclose(open_pcm(found.files[0]), sounds_16(each[taken]), atol=1)
    assert note in found.notes[0]


PLAIN, DEFAULT, COMMENT = Disposition(0), Disposition.default, Disposition.comment
MARKS: dict[str, tuple[tuple[Disposition, ...], int]] = {
    "none": ((PLAIN, PLAIN), 0),
    "both default": ((DEFAULT, DEFAULT), 0),
    "the second is the default": ((PLAIN, DEFAULT), 1),
    "the first is commentary": ((COMMENT, PLAIN), 1),
    "commentary marked as default": ((COMMENT | DEFAULT, PLAIN), 1),
    "the second is for those who cannot see": ((PLAIN, Disposition.visual_impaired), 0),
}


@pytest.mark.parametrize("name", MARKS)
def test_of_tracks_with_speech_the_one_is_taken_that_a_player_takes(tmp_path: Path, name: str) -> None:
    marks, taken = MARKS[name]
    each = (SPEECH, OTHER)
    found = decode(tracks(tmp_path / "a.mka", *each, marks=marks), tmp_path / "a.pcm", max_seconds=60)
    np.testing.assert_allclose(open_pcm(found.files[0]), sounds_16(each[taken]), atol=1)
    assert found.notes == (f"audio track {taken + 1} of 2 was taken, the others were left out",)


def test_a_silent_default_track_gives_way(tmp_path: Path) -> None:
    path = tracks(tmp_path / "a.mka", SPEECH, NOTHING, marks=(PLAIN, DEFAULT))
    found = decode(path, tmp_path / "a.pcm", max_seconds=60)
    np.testing.assert_allclose(open_pcm(found.files[0]), sounds_16(SPEECH), atol=1)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_each_channel_in_a_file_of_its_own(tmp_path: Path, count: int) -> None:
    channels = [sounds.tone(1.0, hertz=200 * (c + 1)) for c in range(count)]
    path = tmp_path / "a.wav"
    path.write_bytes(sounds.wav(sounds.pcm(np.stack(channels)), channels=count))
    found = decode(path, tmp_path / "a.pcm", max_seconds=60, channels="each")
    assert len(found.files) == count
    for file, channel in zip(found.files, channels, strict=True):
        np.testing.assert_allclose(open_pcm(file), sounds_16(channel), atol=1)


@pytest.mark.parametrize("count", [6, 7, 8, 9, 12, 16, 24, 31, 63, 64])
@pytest.mark.parametrize("bits", [16, 32])
def test_recordings_of_many_channels(tmp_path: Path, count: int, bits: int) -> None:
    samples = np.zeros((count, RATE), np.float32)
    samples[count - 1] = sounds.tone(1.0)
    path = tmp_path / "a.wav"
    data = sounds.pcm(samples) if bits == 16 else samples.T.astype("<f4").tobytes()
    path.write_bytes(sounds.wav(data, channels=count, bits=bits, coding=1 if bits == 16 else 3))
    found = decode(path, tmp_path / "a.pcm", max_seconds=60)
    np.testing.assert_allclose(open_pcm(found.files[0]), sounds_16(samples[count - 1]), atol=2)
