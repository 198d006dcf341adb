"""What the text embedding is measured on is apart from what it is trained on."""

from __future__ import annotations

import re
from pathlib import Path

import training
from training import held_out, intents

ROWS = [
    line.split("|")
    for line in (Path(training.__file__).with_name("paraphrases.txt")).read_text(encoding="utf-8").splitlines()
]


def test_a_hundred_meanings_are_worded_twice_in_each_language() -> None:
    assert len(ROWS) >= 100
    assert {len(row) for row in ROWS} == {4}
    sentences = [sentence for row in ROWS for sentence in row]
    assert len(set(sentences)) == len(sentences)
    for *chinese, first, second in ROWS:
        assert all(re.search("[\u4e00-\u9fff]", sentence) for sentence in chinese)
        assert (first + second).isascii()


def test_no_template_of_the_training_makes_a_sentence_of_the_measurement() -> None:
    wordings = [text for wording in intents.INTENTS for texts in wording.values() for text in texts]
    assert len(wordings) > 100
    made = re.compile("|".join(_made(text) for text in wordings))
    assert made.fullmatch("the database was deployed by the lawyer")
    assert [sentence for row in ROWS for sentence in row if made.fullmatch(sentence)] == []


def _made(text: str) -> str:
    """What a template can make: things and actions are single words of a dictionary, the rest is listed."""
    listed = {"who": intents.WHO, "whom": intents.WHO, "when": intents.WHEN, "num": intents.NUMBERS}
    places = {name: "|".join(word for words in forms for word in words) for name, forms in listed.items()}
    word = "[a-z]+|[\u4e00-\u9fff]+"
    parts = re.split(r"\{(\w+)\}", text)
    return "".join(f"(?:{places.get(part, word)})" if i % 2 else re.escape(part) for i, part in enumerate(parts))


def test_wordings_of_one_intent_have_the_same_places_in_both_languages() -> None:
    for wording in intents.INTENTS:
        places = {frozenset(re.findall(r"\{(\w+)\}", text)) for texts in wording.values() for text in texts}
        assert len(places) == 1, wording


def test_the_measurement_has_no_sentence_of_the_frozen_set() -> None:
    assert all(held_out.allowed(sentence) for row in ROWS for sentence in row)
