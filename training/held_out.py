"""The terms and sentences of the frozen evaluation sets, which no training or tuning data may contain.

`held_out.json` has the terms as plain text, because they must be known to be avoided, and each sentence as SHA-256 of
its bare form. `python -m training.held_out FOLDER…` writes it. A folder has `sentences.jsonl` or meetings as JSON files
with `turns`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("held_out.json")


def allowed(text: str) -> bool:
    """Whether training may use `text`: it has no held-out term (Latin ones as whole words) and is no held-out sentence."""
    lowered = text.lower()
    return not _terms().search(lowered) and _digest(lowered) not in _sentences()


def bare(text: str) -> str:
    """Lower-case letters and digits only, so that two spellings of one sentence are equal."""
    return "".join(c for c in text.lower() if c.isalnum())


def _digest(text: str) -> str:
    return hashlib.sha256(bare(text).encode()).hexdigest()


@cache
def _terms() -> re.Pattern[str]:
    terms = json.loads(FILE.read_text(encoding="utf-8"))["terms"]
    latin = [re.escape(term) for term in terms if term.isascii()]
    other = [re.escape(term) for term in terms if not term.isascii()]
    return re.compile(rf"(?<![a-z])(?:{'|'.join(latin)})(?![a-z])|{'|'.join(other)}")


@cache
def _sentences() -> frozenset[str]:
    return frozenset(json.loads(FILE.read_text(encoding="utf-8"))["sentences"])


def collect(folders: list[Path]) -> dict[str, list[str]]:
    """The terms and sentence digests of evaluation folders."""
    terms: set[str] = set()
    sentences: set[str] = set()
    for folder in folders:
        manifest = folder / "sentences.jsonl"
        rows = manifest.read_text(encoding="utf-8").splitlines() if manifest.exists() else []
        for row in map(json.loads, rows):
            terms.update(row["terms"])
            sentences.add(_digest(row["text"]))
        for path in folder.glob("*.json"):
            meeting = json.loads(path.read_text(encoding="utf-8"))
            terms.update(meeting.get("glossary", []), meeting.get("glossary_absent", []))
            sentences.update(_digest(turn["text"]) for turn in meeting["turns"])
    return {"terms": sorted(term.lower() for term in terms), "sentences": sorted(sentences)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    FILE.write_text(
        json.dumps(collect(parser.parse_args().folders), ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
