"""`duet bench` as a user runs it: real processes, the embedded models, recordings that ship."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import models

pytestmark = pytest.mark.e2e
DEMO = models.CARDS / "demo"


def bench(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "duet.cli.main", "bench", *arguments]
    environment = {**os.environ, "DUET_HOME": str(home)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)


def test_cer_of_a_meeting_s_turns_with_and_without_review_by_rule(tmp_path: Path) -> None:
    truth = json.loads((DEMO / "meeting.json").read_text(encoding="utf-8"))
    meeting = {**truth, "audio": str(DEMO / "meeting.flac"), "glossary_absent": ["蒙古包", "orchestra"]}
    manifest = tmp_path / "meeting.json"
    manifest.write_text(json.dumps(meeting, ensure_ascii=False), encoding="utf-8")
    arguments = ["cer", "--embedded", "--manifest", str(manifest), "--arms", "rule", "--out", str(tmp_path / "out")]
    done = bench(tmp_path / "home", *arguments)
    assert done.returncode == 0, done.stderr
    assert f"all: {len(truth['turns'])} utterances" in done.stdout
    found = json.loads((tmp_path / "out" / "cer.json").read_text(encoding="utf-8"))
    none, rule, absent = (arm["groups"]["all"] for arm in found["arms"])
    assert none["cer"]["units"] == rule["cer"]["units"] > 150
    assert none["cer"]["rate"] < 0.6
    assert rule["term_recall"] >= none["term_recall"]
    assert rule["protected_changed"] == absent["protected_changed"] == 0
    assert (tmp_path / "out" / "cer.svg").read_text(encoding="utf-8").startswith("<svg")


def test_der_of_a_meeting(tmp_path: Path) -> None:
    truth = json.loads((DEMO / "meeting.json").read_text(encoding="utf-8"))
    manifest = tmp_path / "meeting.json"
    manifest.write_text(json.dumps({**truth, "audio": str(DEMO / "meeting.flac")}), encoding="utf-8")
    done = bench(tmp_path / "home", "der", "--embedded", "--manifest", str(manifest), "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    unknown, given = json.loads((tmp_path / "der.json").read_text(encoding="utf-8"))["meetings"]
    assert (unknown["speakers_known"], given["speakers_known"]) == (False, True)
    assert unknown["der"] < 0.25
    assert given["found"] == given["speakers"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cer", "--manifest", "MANIFEST", "--backend", "telepathy"], "sensevoice, router, engine"),
        (["cer", "--manifest", "MANIFEST", "--arms", "magic"], "none, rule, lm, lm+rule"),
        (["cer", "--manifest", "MANIFEST"], "line 1: audio 'gone.wav' is not there"),
        (["cer"], "--manifest"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(tmp_path: Path, arguments: list[str], said: str) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"audio": "gone.wav", "text": "x"}\n', encoding="utf-8")
    named = [str(manifest) if argument == "MANIFEST" else argument for argument in arguments]
    done = bench(tmp_path / "home", *named)
    assert done.returncode in (1, 2)
    assert said in done.stderr
