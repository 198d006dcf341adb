"""The embedded models and the demo's recordings: complete, small, marked, and free of the frozen evaluation set."""

from __future__ import annotations

import importlib.util
import json
import os
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from tokenizers import Tokenizer

import models
import training
from pipelines.meeting.review.prompts import REVIEW_SYSTEM
from pipelines.meeting.summarize import SUMMARY_SYSTEM

NAMES = ("duet-tiny-asr", "duet-tiny-chat", "duet-tiny-embed", "duet-tiny-speaker", "duet-tiny-vl")
HELD_OUT_VOICES = {"m4", "m8", "f3", "klatt3", "Annie", "john", "linda", "max", "quincy", "paul"}
TRAINING = Path(training.__file__).parent


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_every_embedded_model_is_marked_as_a_demonstration(name: str) -> None:
    card = tomllib.loads((models.EMBEDDED / f"{name}.toml").read_text(encoding="utf-8"))
    assert card["id"] == name
    assert card["demonstration"] is True
    assert card["description"].startswith("Demonstration:")
    assert name in (models.EMBEDDED / "README.md").read_text(encoding="utf-8")


def test_the_embedded_models_are_small() -> None:
    sizes = {name: sum(f.stat().st_size for f in (models.EMBEDDED / name).rglob("*") if f.is_file()) for name in NAMES}
    assert all((models.EMBEDDED / name).is_dir() for name in NAMES)
    assert sizes["duet-tiny-embed"] <= 4_000_000
    assert sizes["duet-tiny-vl"] <= 8_000_000
    assert sum(sizes.values()) <= 30_000_000


def test_the_review_model_s_tokenizer_knows_the_pipeline_s_prompts() -> None:
    """Each is one token to it: a prompt that changes by a letter is another one, and the model must be trained anew."""
    tokenizer = Tokenizer.from_file(str(models.EMBEDDED / "duet-tiny-chat" / "tokenizer.json"))
    for prompt in (REVIEW_SYSTEM, SUMMARY_SYSTEM):
        assert len(tokenizer.encode(prompt, add_special_tokens=False).ids) == 1


def test_the_demo_s_truth_fits_its_recording() -> None:
    from speech.decoding.trusted import samples as decode

    truth = json.loads((models.CARDS / "demo" / "meeting.json").read_text(encoding="utf-8"))
    samples = decode(models.CARDS / "demo" / "meeting.flac", max_seconds=600)
    assert len(samples) / 16_000 == pytest.approx(truth["seconds"], abs=0.1)
    assert truth["seconds"] >= 60
    ends = [turn["end"] for turn in truth["turns"]]
    assert ends == sorted(ends)
    assert len({turn["speaker"] for turn in truth["turns"]}) == 3
    texts = "".join(turn["text"] for turn in truth["turns"])
    assert any("\u4e00" <= char <= "\u9fff" for char in texts)
    assert "the dashboard" in texts


def test_demo_voices_are_not_those_of_the_evaluation() -> None:
    demo = script(models.CARDS / "demo" / "make_demo.py")
    assert not {voice for voice, _, _ in demo.VOICES.values()} & HELD_OUT_VOICES


def test_training_and_tuning_have_no_voice_of_the_evaluation() -> None:
    variants = script(TRAINING / "variants.py")
    held_out, development = set(variants.HELD_OUT_VARIANTS), set(variants.DEVELOPMENT_VARIANTS)
    voices = set(variants.TRAIN_VARIANTS)
    assert held_out == HELD_OUT_VOICES
    assert not voices & held_out
    assert not voices & development
    assert not development & held_out
    assert len(voices) + len(development) > 40


def test_a_sentence_or_term_of_the_evaluation_is_never_allowed() -> None:
    held_out = script(TRAINING / "held_out.py")
    known = json.loads(held_out.FILE.read_text(encoding="utf-8"))
    assert len(known["terms"]) > 30
    assert len(known["sentences"]) > 70
    assert not any(held_out.allowed(f"前面{term}后面") for term in known["terms"])
    assert not any(held_out.allowed(f"before {term.upper()}, after") for term in known["terms"])
    assert held_out.allowed("我们明天再讨论。")


@pytest.mark.recordings
def test_nothing_of_the_frozen_evaluation_set_is_in_the_data() -> None:
    """Its sentences and terms may enter neither training data nor the demo."""
    folder = os.environ.get("DUET_TEST_EVAL")
    if not folder:
        pytest.skip("DUET_TEST_EVAL names no folder of frozen evaluation speech")
    terms: set[str] = set()
    sentences: set[str] = set()
    for line in (Path(folder) / "sentences.jsonl").read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        terms |= set(item["terms"])
        sentences.add(item["text"])
    for path in Path(folder).glob("vis*.json"):
        item = json.loads(path.read_text(encoding="utf-8"))
        terms |= {*item["glossary"], *item["glossary_absent"]}
        sentences |= {turn["text"] for turn in item["turns"]}
    assert len(sentences) > 60
    ours = "\n".join(
        path.read_text(encoding="utf-8").lower()
        for room in (models.CARDS / "demo", TRAINING)
        for path in room.rglob("*")
        if path.suffix in (".py", ".json") and path.name != "held_out.json"
    )
    # Names of what the scripts make, not terms in their data: the architecture and the recogniser's format.
    ours = ours.replace("qwen3", "").replace("qwen2", "").replace("sensevoice", "")
    held_out = script(TRAINING / "held_out.py")
    assert not any(held_out.allowed(text) for text in sentences | terms)
    assert [text for text in sentences if text.lower() in ours] == []
    assert [term for term in terms if term.lower() in ours] == []
