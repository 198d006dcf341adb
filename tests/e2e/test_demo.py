"""`make demo`, as a new user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(600)
def test_the_demo_shows_everything(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DUET_")}
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-P", "-m", "duet.demo", "--json", str(figures)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=570, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    assert "demonstration" in found["chat"]["answer"]
    assert found["vision"]["right"] == found["vision"]["images"] == 5, found["vision"]["read"]
    scores = list(found["embeddings"]["scores"].values())
    assert min(scores[:2]) > max(scores[2:]), "a paraphrase is further away than another sentence"
    assert found["transcription"]["cer"] < 0.2
    meeting = found["meeting"]
    assert meeting["duration"] >= 60
    assert meeting["accepted"] >= 1
    assert meeting["cer_after"] < meeting["cer_before"] < 0.35
    assert [stage["runs"] for stage in meeting["stages"]] == [1] * 7
    assert sorted(path.name for path in (tmp_path / "demo-outputs").iterdir()) == [
        "reviewed.md", "subtitles.srt", "summary.md", "timeline.json", "transcript.md",
    ]  # fmt: skip
