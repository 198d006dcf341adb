"""Which texts sound alike, by keys: pinyin without tones and with confusable sounds merged, consonants of Latin words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

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
class _Sounds:
    """The keys of a piece of text, unit by unit. `han`: all of them are Han characters."""

    keys: tuple[str, ...]
    han: bool

    @property
    def letters(self) -> str:
        return "".join(self.keys)


@lru_cache(maxsize=16_384)
def sound(unit: str) -> str:
    """The key of one unit: a Han character's syllable, or a word's letters."""
    if not is_han(unit):
        return re.sub(r"[^a-z0-9]", "", unit.lower())
    # Its dictionaries take 57 MB: only a process that compares sounds loads them.
    from pypinyin import Style, lazy_pinyin

    syllable = lazy_pinyin(unit, style=Style.NORMAL)[0]
    for written, merged in _CONFUSED:
        syllable = syllable.replace(written, merged)
    return str(syllable)


def skeleton(word: str) -> str:
    """The consonants of a Latin word, spelt as they sound, with doubles merged. The first letter stays."""
    word = re.sub(r"[^a-z0-9]", "", word.lower())
    for written, merged in _SPELLINGS:
        word = word.replace(written, merged)
    return re.sub(r"(.)\1+", r"\1", word[:1] + re.sub(r"[aeiouywh]", "", word[1:]))


def similarity(first: str, second: str) -> float:
    """How alike two pieces of text sound, 0 to 1. Pieces in different scripts are compared by their letters only."""
    return _alike(_sounds(first), _sounds(second), at_least=0.0)


@lru_cache(maxsize=4096)
def _sounds(text: str) -> _Sounds:
    found = units(text)
    return _Sounds(tuple(sound(unit) for unit in found), bool(found) and all(is_han(unit) for unit in found))


def _alike(first: _Sounds, second: _Sounds, *, at_least: float) -> float:
    """The `similarity` of the two. A value below `at_least` may be returned as 0, which is cheaper."""
    one, two = first.letters, second.letters
    if not one or not two:
        return 0.0
    if first.han and second.han:
        letters = Levenshtein.normalized_similarity(one, two, score_cutoff=at_least)
        # 土谱 and 图谱 share one syllable exactly and most letters of the other: take the better of the two measures.
        return max(letters, _syllables_alike(first.keys, second.keys))
    # A mean of two measures, of which the other is at most 1.
    letters = Levenshtein.normalized_similarity(one, two, score_cutoff=max(0.0, 2 * at_least - 1))
    if letters == 0.0 and at_least > 0.5:
        return 0.0
    return (letters + Levenshtein.normalized_similarity(skeleton(one), skeleton(two))) / 2


def _syllables_alike(first: tuple[str, ...], second: tuple[str, ...]) -> float:
    if len(first) != len(second):
        return 0.0
    return sum(_syllable_alike(a, b) for a, b in zip(first, second, strict=True)) / len(first)


@lru_cache(maxsize=65_536)
def _syllable_alike(first: str, second: str) -> float:
    return float(Levenshtein.normalized_similarity(first, second))


def candidates(text: str, terms: Sequence[tuple[str, Sequence[str]]], *, threshold: float = 0.78) -> list[Candidate]:
    """Places of `text` that sound like a term or one of its aliases, best first, one per term. `terms` are (term, aliases).

    A text that has the term itself has no candidate for it. Compares windows of about the term's length, in units.
    """
    placed = list(UNIT.finditer(text))
    keys = [sound(match.group()) for match in placed]
    han = [is_han(match.group()) for match in placed]
    found: dict[str, Candidate] = {}
    for term, aliases in terms:
        if _reads(text, placed, term):
            continue
        for form in dict.fromkeys((term, *aliases)):
            best = _best_window(keys, han, _sounds(form), threshold)
            if best and (term not in found or best[0] > found[term].similarity):
                alike, first, last = best
                start, end = placed[first].start(), placed[last].end()
                found[term] = Candidate(term, text[start:end], start, end, round(alike, 3))
    return sorted(found.values(), key=lambda candidate: -candidate.similarity)


def _best_window(keys: list[str], han: list[bool], wanted: _Sounds, threshold: float) -> tuple[float, int, int] | None:
    """(similarity, first unit, last unit) of the window most like `wanted`, at least `threshold`; the first one among equals."""
    size = len(wanted.letters)
    best: tuple[float, int, int] | None = None
    for length in range(max(1, len(wanted.keys) - 1), len(wanted.keys) + 3):
        for i in range(len(keys) - length + 1):
            window = tuple(keys[i : i + length])
            # A cheap bound first: keys of very different length cannot be alike.
            if abs(sum(map(len, window)) - size) > max(2, 0.4 * size):
                continue
            alike = _alike(_Sounds(window, all(han[i : i + length])), wanted, at_least=threshold)
            if alike >= threshold and (best is None or alike > best[0]):
                best = (alike, i, i + length - 1)
    return best


def _reads(text: str, placed: list[re.Match[str]], term: str) -> bool:
    """Whether the text has the term as written, in whole units: "array" does not have "ray"."""
    length = len(units(term))
    return any(
        text[placed[i].start() : placed[i + length - 1].end()].lower() == term.lower()
        for i in range(len(placed) - length + 1)
        if length
    )
