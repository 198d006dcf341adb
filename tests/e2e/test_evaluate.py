"""`python -m training.evaluate` as it is run: the product's commands on the embedded models, figures and page."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import models
from training.evaluate import document

DEMO = models.CARDS / "demo"


@pytest.mark.e2e
def test_recogniser_and_speakers_are_measured_and_told(tmp_path: Path) -> None:
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    for name in ("meeting.flac", "clip_zh.flac"):
        shutil.copy(DEMO / name, frozen / name)
    truth = json.loads((DEMO / "meeting.json").read_text(encoding="utf-8"))
    (frozen / "m.json").write_text(json.dumps({**truth, "audio": "meeting.flac"}), encoding="utf-8")
    line = {"audio": "clip_zh.flac", "text": "我们明天下午讨论数据库的性能。", "terms": ["数据库"]}
    (frozen / "sentences.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    figures, readme = tmp_path / "figures.json", tmp_path / "README.md"
    command = [
        *(
            sys.executable,
            "-P",
            "-m",
            "training.evaluate",
            "--only",
            "recogniser/frozen,speaker",
            "--eval",
            str(frozen),
        ),
        *("--work", str(tmp_path / "work"), "--json", str(figures), "--readme", str(readme)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=170)
    assert done.returncode == 0, done.stderr
    found = document.read(figures)
    assert found.current("recogniser/frozen").figures["groups"]["all"]["utterances"] == 1  # type: ignore[union-attr]
    assert found.current("speaker/frozen").figures["meetings"][0]["speakers"] == 3  # type: ignore[union-attr]
    assert sorted(found.measured) == ["recogniser/frozen", "speaker/frozen"]
    assert "number of speakers right in" in readme.read_text(encoding="utf-8")


@pytest.mark.debian
def test_sentences_are_spoken_alike_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.accuracy import manifest
    from training import variants
    from training.recogniser import spoken

    (tmp_path / "spoken.txt").write_text("大家好。\nsee you tomorrow.\n", encoding="utf-8")
    monkeypatch.setattr(spoken, "FILE", tmp_path / "spoken.txt")
    paths = [spoken.write(tmp_path / name) for name in ("one", "two")]
    for path in paths:
        assert [(one.text, one.language) for one in manifest.read([path]).utterances] == [
            ("大家好。", "zh"),
            ("see you tomorrow.", "en"),
        ]
        rows = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
        assert {row["voice"] for row in rows} <= set(variants.DEVELOPMENT_VARIANTS)
    for name in ("000.wav", "001.wav"):
        first, second = ((path.parent / name).read_bytes() for path in paths)
        assert first == second
        assert len(first) > 16_000
