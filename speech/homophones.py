"""What sounds alike: pinyin without tones and with confusable sounds merged, consonant skeletons of Latin words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from pypinyin import Style, lazy_pinyin
from rapidfuzz.distance import Levenshtein

from speech.normalise import UNIT, is_han, units

_CONFUSED = (("zh", "z"), ("ch", "c"), ("sh", "s"), ("ng", "n"), ("l", "n"), ("h", "f"))
_SPELLINGS = (("ph", "f"), ("ck", "k"), ("qu", "kw"), ("c", "k"), ("q", "k"), ("x", "ks"), ("z", "s"))


@dataclass(frozen=True)
class Candidate:
    """`heard`, text of the segment at `start`..`end`, may have been `term`."""

    term: str
    heard: str
    start: int
    end: int
    similarity: float


@dataclass(frozen=True)
class _Unit:
    text: str
    start: int
    end: int


@lru_cache(maxsize=16_384)
def sound(unit: str) -> str:
    """The key of one unit: a Han character's syllable, or a word's letters."""
    if not is_han(unit):
        return re.sub(r"[^a-z0-9]", "", unit.lower())
    syllable = lazy_pinyin(unit, style=Style.NORMAL)[0]
    for written, merged in _CONFUSED:
        syllable = syllable.replace(written, merged)
    return str(syllable)


def skeleton(word: str) -> str:
    """Consonants of a Latin word, spelt as they sound, doubles merged; the first letter stays."""
    word = re.sub(r"[^a-z0-9]", "", word.lower())
    for written, merged in _SPELLINGS:
        word = word.replace(written, merged)
    return re.sub(r"(.)\1+", r"\1", word[:1] + re.sub(r"[aeiouywh]", "", word[1:]))


def similarity(first: str, second: str) -> float:
    """0 to 1: how alike two pieces of text sound. Pieces of different scripts sound alike only by their letters."""
    keys = ["".join(sound(unit) for unit in units(text)) for text in (first, second)]
    if not all(keys):
        return 0.0
    if is_han("".join(units(first))) and is_han("".join(units(second))):
        return _han_similarity(first, second, keys[0], keys[1])
    letters = Levenshtein.normalized_similarity(keys[0], keys[1])
    return (letters + Levenshtein.normalized_similarity(skeleton(keys[0]), skeleton(keys[1]))) / 2


def _han_similarity(first: str, second: str, first_key: str, second_key: str) -> float:
    """The better of letters and syllables: 土谱 and 图谱 share one syllable exactly and the letters of the other."""
    one, two = units(first), units(second)
    letters = Levenshtein.normalized_similarity(first_key, second_key)
    if len(one) != len(two):
        return letters
    same = sum(Levenshtein.normalized_similarity(sound(a), sound(b)) for a, b in zip(one, two, strict=True)) / len(one)
    return max(letters, same)


def candidates(text: str, terms: Sequence[tuple[str, Sequence[str]]], *, threshold: float = 0.78) -> list[Candidate]:
    """Places of `text` that sound like a term or one of its aliases, best first, one per term. `terms` are (term, aliases).

    A place that already reads as the term is none. Sliding windows of about the term's length, in units.
    """
    placed = [_Unit(match.group(), match.start(), match.end()) for match in _unit_matches(text)]
    keys = [sound(unit.text) for unit in placed]
    found: dict[str, Candidate] = {}
    for term, aliases in terms:
        if term.lower() in text.lower():
            continue
        for form in (term, *aliases):
            for candidate in _windows(text, placed, keys, term, form, threshold):
                if term not in found or candidate.similarity > found[term].similarity:
                    found[term] = candidate
    return sorted(found.values(), key=lambda candidate: -candidate.similarity)


def _windows(
    text: str, placed: list[_Unit], keys: list[str], term: str, form: str, threshold: float
) -> list[Candidate]:
    wanted = units(form)
    key = "".join(sound(unit) for unit in wanted)
    found = []
    for length in range(max(1, len(wanted) - 1), len(wanted) + 3):
        for i in range(len(placed) - length + 1):
            heard_key = "".join(keys[i : i + length])
            # Cheap bound first: keys of very different length cannot be alike.
            if abs(len(heard_key) - len(key)) > max(2, 0.4 * len(key)):
                continue
            start, end = placed[i].start, placed[i + length - 1].end
            heard = text[start:end]
            alike = similarity(heard, form)
            if alike >= threshold and heard.lower() != term.lower():
                found.append(Candidate(term, heard, start, end, round(alike, 3)))
    return found


def _unit_matches(text: str) -> list[re.Match[str]]:

    return list(UNIT.finditer(text))
