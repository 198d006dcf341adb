"""Levels: what is measured, and what is done about it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from speech import level
from speech.level import Level
from speech.splitter import SAMPLE_RATE
from tests import sounds

RANDOM = np.random.default_rng(4)


def syllables(seconds: float, db: float = 0.0) -> sounds.Samples:
    """A voice that speaks four syllables a second: tones that come and go."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    voice = sum(np.sin(2 * np.pi * hertz * time) / n for n, hertz in enumerate((400, 800, 1200, 2400), 1))
    return (0.2 * 10 ** (db / 20) * voice * np.clip(np.sin(2 * np.pi * 4 * time), 0, 1)).astype(np.float32)


def noise(seconds: float, amplitude: float) -> sounds.Samples:
    return RANDOM.normal(0, amplitude, round(seconds * SAMPLE_RATE)).astype(np.float32)


def hum(seconds: float, amplitude: float, hertz: float = 50.0) -> sounds.Samples:
    return sum(
        (sounds.tone(seconds, hertz=hertz * n, amplitude=amplitude / n) for n in (1, 2, 3)),
        np.zeros(round(seconds * SAMPLE_RATE), np.float32),
    )


@pytest.mark.parametrize("db", [0, -12, -24, -36, -42])
@pytest.mark.parametrize("seconds", [0.3, 1.0, 10.0, 60.0])
def test_a_level_moves_with_the_audio_and_the_gain_against_it(db: float, seconds: float) -> None:
    loud = level.measure(syllables(seconds))
    found = level.measure((syllables(seconds, db) * 32767).astype(np.int16))
    assert found.loud == pytest.approx(loud.loud + db, abs=0.3)
    raised = 20 * math.log10(level.gain(found)) + found.loud
    assert raised == pytest.approx(level.TARGET_DB if found.loud < level.LOUD_ENOUGH_DB else found.loud, abs=0.01)


@pytest.mark.parametrize("disturbance", ["click", "three clicks", "hum of 50 Hz", "hum of 60 Hz", "offset"])
def test_clicks_and_hum_do_not_change_the_level_of_speech(disturbance: str) -> None:
    quiet = syllables(10.0, -36)
    disturbed = quiet.copy()
    match disturbance:
        case "click":
            disturbed[50_000:50_060] = 0.9
        case "three clicks":
            disturbed[[8_000, 60_000, 120_000]] = 1.0
        case "hum of 50 Hz":
            disturbed += hum(10.0, 0.1)
        case "hum of 60 Hz":
            disturbed += hum(10.0, 0.1, 60.0)
        case _:
            disturbed += 0.2
    found, clean = level.measure(disturbed), level.measure(quiet)
    assert found.loud == pytest.approx(clean.loud, abs=1.0)
    assert level.hums(found) == disturbance.startswith("hum")


def test_a_word_in_a_long_silence_has_its_own_level() -> None:
    word = syllables(0.5, -30)
    alone = np.concatenate([np.zeros(20 * SAMPLE_RATE, np.float32), word, np.zeros(20 * SAMPLE_RATE, np.float32)])
    assert level.measure(alone).loud == pytest.approx(level.measure(word).loud, abs=2.0)


@pytest.mark.parametrize(
    ("name", "measured", "gain_db"),
    [
        ("speech at the target", Level(-16, -50, -60), 0),
        ("loud speech", Level(-3, -40, -60), 0),
        ("loud enough", Level(-28, -40, -60), 0),
        ("not quite", Level(-29, -50, -60), 13),
        ("quiet speech", Level(-46, -80, -80), 30),
        ("as quiet as is raised", Level(-60, -90, -90), 44),
        ("quieter", Level(-71, -90, -90), 44),
        ("inaudible", Level(-73, -90, -90), 0),
        ("the noise of a converter", Level(-90, -92, -95), 0),
        ("silence", level.SILENCE, 0),
        ("hum and nothing else", Level(-80, -80, -20), 0),
    ],
)
def test_the_gain_is_bounded_and_silence_has_none(name: str, measured: Level, gain_db: float) -> None:
    assert 20 * math.log10(level.gain(measured)) == pytest.approx(gain_db, abs=1e-9), name


@pytest.mark.parametrize(
    ("name", "samples", "heard"),
    [
        ("nothing", np.zeros(0, np.float32), False),
        ("one sample", np.zeros(1, np.float32), False),
        ("silence", np.zeros(16_000, np.float32), False),
        ("dither", noise(2.0, 1 / 32768), False),
        ("noise", noise(2.0, 0.01), True),
        ("a tone", sounds.tone(1.0), True),
        ("a quiet tone", sounds.tone(1.0, amplitude=0.001), True),
        ("hum", hum(1.0, 0.05), True),
        ("speech", syllables(1.0, -40), True),
        ("a very short sound", sounds.tone(0.02), True),
    ],
)
def test_what_is_audible(name: str, samples: sounds.Samples, heard: bool) -> None:
    assert level.audible(samples) == heard, name


def test_a_recogniser_gets_quiet_clips_raised_and_others_as_they_are() -> None:
    clip = syllables(2.0)
    assert np.array_equal(level.lifted(clip), clip)
    assert level.lifted((clip * 32767).astype(np.int16)).dtype == np.float32
    raised = level.measure(level.lifted(syllables(2.0, -40)))
    assert raised.loud == pytest.approx(level.TARGET_DB, abs=0.5)
    assert np.abs(level.lifted(syllables(2.0, -40) + np.float32(0.3) * (np.arange(32_000) == 9))).max() <= 1.0
    assert np.array_equal(level.lifted(np.zeros(500, np.int16)), np.zeros(500, np.float32))


@pytest.mark.parametrize("count", [1, 511, 512, 513, level._BLOCK - 1, level._BLOCK, level._BLOCK + 700])
def test_blocks_hold_all_samples_in_their_places(count: int) -> None:
    samples = noise(count / SAMPLE_RATE, 0.1)[:count]
    for without_hum in (False, True):
        blocks = np.concatenate(list(level.raised(samples, 2.0, without_hum=without_hum)))
        assert len(blocks) % level.FRAME == 0
        assert 0 <= len(blocks) - count < level.FRAME
        assert np.corrcoef(blocks[:count], samples)[0, 1] > 0.97 if count > 1 else True
    assert np.array_equal(np.concatenate(list(level.raised(samples, 2.0)))[:count], samples * 2)


def test_hum_is_taken_out_and_speech_stays() -> None:
    speech = syllables(20.0, -30)
    blocks = np.concatenate(list(level.raised(speech + hum(20.0, 0.3), 1.0, without_hum=True)))[: len(speech)]
    rest = (blocks - speech)[2000:-2000]
    assert sounds.root_mean_square(rest) < 0.1 * sounds.root_mean_square(speech)
