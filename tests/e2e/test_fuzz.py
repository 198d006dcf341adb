"""Damaged media files and model folders against a running stack: a short run of `make fuzz`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stress.fuzz import folders, media


def test_a_case_can_be_made_again_from_its_number(tmp_path: Path) -> None:
    whole = media.whole_files()
    again = media.whole_files()
    assert [media.case(5, number, whole) for number in range(50)] == [
        media.case(5, number, again) for number in range(50)
    ]
    made = [folders.make(5, 3, folders.whole_folders(tmp_path / name), tmp_path / name) for name in ("a", "b")]
    assert made[0] == made[1]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_no_service_dies_of_damaged_files_and_folders(tmp_path: Path) -> None:
    result = tmp_path / "fuzz.json"
    command = [sys.executable, "-m", "tests.stress.fuzz", "--media", "120", "--folders", "32", "--json", str(result)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=880, check=False)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    assert all(json.loads(result.read_text())["checks"].values())
