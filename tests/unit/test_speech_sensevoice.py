"""SenseVoice's results as segments: tags, and words from tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

import models
from duet.settings import load_settings
from duet.wire import Segment, Word
from speech.recognisers.child.sensevoice import as_segment
from speech.recognisers.sensevoice import find_sensevoice
from speech.recognisers.stitching import shifted


@dataclass
class Result:
    """What sherpa-onnx answers."""

    text: str = "hi"
    lang: str = "<|en|>"
    emotion: str = "<|NEUTRAL|>"
    event: str = "<|Speech|>"
    tokens: list[str] = field(default_factory=list)
    timestamps: list[float] = field(default_factory=list)


def words(*tokens: str) -> list[str]:
    times = [0.06 * i for i in range(len(tokens))]
    result = Result(text="".join(tokens), tokens=list(tokens), timestamps=times)
    return [word.text for word in as_segment(result, 10.0).words]


def test_tags_lose_their_brackets() -> None:
    segment = as_segment(Result(lang="<|yue|>", emotion="<|HAPPY|>", event="<|Laughter|>"), 1.0)
    assert (segment.language, segment.emotion, segment.event) == ("yue", "happy", "laughter")


@pytest.mark.parametrize("tag", ["", "<|EMO_UNKNOWN|>", "<|unk|>", "<|nospeech|>", "<|Event_UNK|>"])
def test_unknown_tags_are_none(tag: str) -> None:
    segment = as_segment(Result(lang=tag, emotion=tag, event=tag), 1.0)
    assert (segment.language, segment.emotion, segment.event) == (None, None, None)


def test_no_text_has_no_words_and_no_language() -> None:
    assert as_segment(Result(text="  ", tokens=["a"], timestamps=[0.0]), 2.0) == Segment(
        0.0, 2.0, "", emotion="neutral", event="speech"
    )


@pytest.mark.parametrize("space", [" ", "▁"])
def test_english_pieces_are_joined_at_spaces(space: str) -> None:
    assert words(f"{space}the", f"{space}dash", "board", f"{space}is", f"{space}s", "low", ".") == [
        "the",
        "dashboard",
        "is",
        "slow.",
    ]


def test_han_characters_and_kana_are_words_and_keep_their_punctuation() -> None:
    assert words("我", "们", "用", "，", "で", "す", "。") == ["我", "们", "用，", "で", "す。"]


def test_scripts_mixed_without_spaces_are_told_apart() -> None:
    assert words("部", "署", "kuber", "netes", "集", "群") == ["部", "署", "kubernetes", "集", "群"]


def test_times_are_starts_on_the_grid_and_inside_the_clip() -> None:
    result = Result(tokens=[" a", " b", " c"], timestamps=[-0.01, 0.05999999, 9.0])
    assert as_segment(result, 1.0).words == (Word("a", 0.0), Word("b", 0.06), Word("c", 1.0))


def test_shifting_moves_all_times() -> None:
    segment = Segment(0.0, 2.0, "a b", words=(Word("a", 0.0), Word("b", 1.0, 1.5)))
    moved = shifted(segment, 10.0)
    assert (moved.start, moved.end, moved.text) == (10.0, 12.0, "a b")
    assert moved.words == (Word("a", 10.0), Word("b", 11.0, 11.5))


def test_the_model_is_the_one_set_then_embedded_then_installed(tmp_path: Path) -> None:
    home = {"DUET_HOME": str(tmp_path)}
    assert find_sensevoice(load_settings(home)) is None
    installed = tmp_path / "models" / "sensevoice"
    installed.mkdir(parents=True)
    assert find_sensevoice(load_settings(home)) == installed
    embedded = {**home, "DUET_EMBEDDED": "true"}
    assert find_sensevoice(load_settings(embedded)) == models.EMBEDDED / "duet-tiny-asr"
    chosen = {**embedded, "DUET_ROUTER__SENSEVOICE_DIR": "/somewhere"}
    assert find_sensevoice(load_settings(chosen)) == Path("/somewhere")
