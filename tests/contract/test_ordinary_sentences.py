"""11,000 ordinary sentences, and a glossary of 500 names and terms that nobody says in them: not one sentence changes.

The sentences are real ones, from two packages of the lock: `hsk-sentences-audio` (a reader for learners of Chinese, each
sentence with its translation; CC BY-SA 4.0) and `chatterbot-corpus` (small talk and questions; BSD). Some of them do name a
term, and keep it as it is written. The terms are products, companies, people and terms of the trade; many are ordinary words
too (Go, Rust, 权利).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import chatterbot_corpus
import hsk_sentences_audio
import pytest
import yaml

from pipelines.glossary import MAX_TERMS, Term
from pipelines.meeting.review.windows import corrected

TERMS = (Path(__file__).parents[1] / "unit" / "terms.txt").read_text(encoding="utf-8").splitlines()
GLOSSARY = tuple(Term(line) for line in TERMS)
PARTS = 4


@cache
def sentences() -> tuple[tuple[str, str], ...]:
    """(language, sentence)"""
    found = {}
    for card in hsk_sentences_audio.load_sentences():
        found[card["chinese"]] = found[card["traditional"]] = "zh"
        found[card["translation"]["en"]] = "en"
    data = Path(chatterbot_corpus.__file__).parent / "data"
    for folder, language in (("english", "en"), ("chinese", "zh")):
        for file in sorted((data / folder).glob("*.yml")):
            for talk in yaml.safe_load(file.read_text(encoding="utf-8"))["conversations"]:
                found |= {str(said): language for said in talk}
    return tuple((language, sentence) for sentence, language in found.items())


def test_there_are_enough_sentences_and_terms() -> None:
    assert len(GLOSSARY) == len(set(TERMS)) == MAX_TERMS
    assert sum(term.isascii() for term in TERMS) >= 200
    assert sum(not term.isascii() for term in TERMS) >= 200
    by_language = [language for language, _ in sentences()]
    assert len(by_language) >= 10_000
    assert min(by_language.count("zh"), by_language.count("en")) >= 4_000


@pytest.mark.parametrize("part", range(PARTS))
def test_no_ordinary_sentence_becomes_another(part: int) -> None:
    changed = []
    for language, sentence in sentences()[part::PARTS]:
        found = corrected(sentence, [], GLOSSARY, language=language)
        if found.text != sentence:
            changed.append((sentence, found.text))
    assert changed == []
