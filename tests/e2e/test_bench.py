"""`duet bench` as a user runs it: real processes, the embedded models, recordings that ship."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

import models

pytestmark = pytest.mark.e2e
DEMO = models.CARDS / "demo"


def bench(
    home: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "duet.cli.main", "bench", *arguments]
    given = {**os.environ, "DUET_HOME": str(home), **(environment or {})}
    return subprocess.run(command, env=given, capture_output=True, text=True, check=False, timeout=240)


@contextmanager
def free_port() -> Iterator[int]:
    """Bound and not listened on: whoever connects is refused, and nobody else can take it meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


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


def test_ready_transcripts_are_scored_and_a_named_arm_without_its_model_is_an_error(tmp_path: Path) -> None:
    lines = [{"id": "1", "audio": str(DEMO / "meeting.flac"), "text": "检查知识蒸馏", "terms": ["知识蒸馏"]}]
    manifest, ready = tmp_path / "m.jsonl", tmp_path / "h.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    ready.write_text(json.dumps({"id": "1", "text": "检查知识争馏"}) + "\n", encoding="utf-8")
    arguments = ["cer", "--manifest", str(manifest), "--hypotheses", str(ready), "--out", str(tmp_path / "out")]
    with free_port() as port:
        environment = {"DUET_ENGINE__PORT": str(port)}
        done = bench(tmp_path / "home", *arguments, environment=environment)
        refused = bench(tmp_path / "home", *arguments, "--arms", "lm", environment=environment)
    assert done.returncode == 0, done.stderr
    assert "No arm with a language model" in done.stdout
    found = json.loads((tmp_path / "out" / "cer.json").read_text(encoding="utf-8"))
    none, rule = (arm["groups"]["all"]["cer"] for arm in found["arms"])
    assert (none["substitutions"], none["units"], rule["rate"]) == (1, 6, 0.0)
    assert found["settings"]["backend"].startswith("hypotheses h.jsonl ")
    assert refused.returncode == 1
    assert "out of reach" in refused.stderr


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
