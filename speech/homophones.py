"""Which texts sound alike, by keys: pinyin without tones and with confusable sounds merged, consonants of Latin words."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

from speech.normalise import UNIT, is_han, units

_CONFUSED = (("zh", "z"), ("ch", "c"), ("sh", "s"), ("ng", "n"), ("l", "n"), ("h", "f"))
_SPELLINGS = (("ph", "f"), ("ck", "k"), ("qu", "kw"), ("c", "k"), ("q", "k"), ("x", "ks"), ("z", "s"))
_SHORTER, _LONGER = 1, 2
"""A term may be heard as so many units less or more than it has."""
_WITHIN = re.compile(r"[\s\-‐‑_'’·/+&.#@]*")
_CLITIC = re.compile(r"['’](?:s|d|m|ll|re|ve)$", re.IGNORECASE)
_PAUSE = re.compile(r"\.\s")
_ROWS: Final = 1024
"""Windows compared at once: bounds the memory of one comparison to a few megabytes."""

Matrix = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Candidate:
    """`heard`, text of the segment at `start`..`end`, may have been `term`: it sounds like `form`, the term or an alias of it."""

    term: str
    form: str
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
    """The key of one unit: a Han character's syllable, or a word's letters without their marks (Korean: its jamo)."""
    if not is_han(unit):
        return "".join(char for char in unicodedata.normalize("NFD", unit.casefold()) if char.isalnum())
    # Its dictionaries take 57 MB: only a process that compares sounds loads them.
    from pypinyin import Style, lazy_pinyin

    syllable = lazy_pinyin(unit, style=Style.NORMAL)[0]
    for written, merged in _CONFUSED:
        syllable = syllable.replace(written, merged)
    return str(syllable)


@lru_cache(maxsize=16_384)
def skeleton(word: str) -> str:
    """The consonants of a Latin word, spelt as they sound, with doubles merged. The first letter stays."""
    word = sound(word) if not is_han(word) else ""
    for written, merged in _SPELLINGS:
        word = word.replace(written, merged)
    return re.sub(r"(.)\1+", r"\1", word[:1] + re.sub(r"[aeiouywh]", "", word[1:]))


def similarity(first: str, second: str) -> float:
    """How alike two pieces of text sound, 0 to 1. Pieces in different scripts are compared by their letters only."""
    return float(_compared([_sounds(first)], [_sounds(second)], 0.0)[0, 0])


@lru_cache(maxsize=4096)
def _sounds(text: str) -> _Sounds:
    found = units(text)
    return _Sounds(tuple(sound(unit) for unit in found), bool(found) and all(is_han(unit) for unit in found))


def _compared(rows: Sequence[_Sounds], columns: Sequence[_Sounds], threshold: float) -> Matrix:
    """The `similarity` of each pair. A value below `threshold` may be 0, which is cheaper."""
    one, two = [row.letters for row in rows], [column.letters for column in columns]
    # A mean of two measures, of which the other is at most 1, reaches the threshold from here on.
    letters = _alike(one, two, max(0.0, 2 * threshold - 1))
    both = _han(rows)[:, None] & _han(columns)[None, :]
    found = letters.copy()
    if not both.all():
        consonants = _alike([skeleton(word) for word in one], [skeleton(word) for word in two], 0.0)
        found = np.where(both, letters, np.where(letters > 0, (letters + consonants) / 2, 0.0))
    if both.any():
        # 土谱 and 图谱 share one syllable exactly and most letters of the other: take the better of the two measures.
        found = np.where(both, np.maximum(letters, _by_syllable(rows, columns)), found)
    empty = np.array([not word for word in one])[:, None] | np.array([not word for word in two])[None, :]
    return np.where(empty, 0.0, found)


def _alike(one: Sequence[str], two: Sequence[str], threshold: float) -> Matrix:
    return process.cdist(
        one, two, scorer=Levenshtein.normalized_similarity, score_cutoff=threshold, dtype=np.float64, workers=1
    )


def _han(sounds: Sequence[_Sounds]) -> Matrix:
    return np.array([each.han for each in sounds], bool)


def _by_syllable(rows: Sequence[_Sounds], columns: Sequence[_Sounds]) -> Matrix:
    """The mean likeness of syllables in the same place; 0 for other numbers of syllables, or other scripts."""
    found = np.zeros((len(rows), len(columns)))
    by_length: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for side, sounds in enumerate((rows, columns)):
        for i, each in enumerate(sounds):
            if each.han:
                by_length[len(each.keys)][side].append(i)
    for length, (left, right) in by_length.items():
        if left and right:
            total = sum(
                _alike([rows[i].keys[at] for i in left], [columns[j].keys[at] for j in right], 0.0)
                for at in range(length)
            )
            found[np.ix_(left, right)] = total / length
    return found


class Index:
    """The terms of a glossary, ready for the search of what sounds like one of them. `terms` are (term, aliases)."""

    def __init__(self, terms: Sequence[tuple[str, Sequence[str]]]) -> None:
        self._by_length: dict[int, list[tuple[str, str, _Sounds]]] = defaultdict(list)
        for term, aliases in terms:
            for form in dict.fromkeys((term, *aliases)):
                sounds = _sounds(form)
                if sounds.letters:
                    self._by_length[len(sounds.keys)].append((term, form, sounds))

    def candidates(
        self, text: str, *, threshold: float, allowed: Callable[[int, int], bool] = lambda start, end: True
    ) -> list[Candidate]:
        """All places of `text` that sound like a term or one of its aliases, the most alike first; a place may be there for
        several terms. Only pieces for which `allowed(start, end)` are compared: pieces of about a term's length, in units,
        without a pause inside."""
        found: dict[tuple[str, str, int, int], float] = {}
        placed = list(UNIT.finditer(text))
        for length in range(1, max(self._by_length, default=0) + _LONGER + 1):
            forms = [
                form
                for size in range(length - _LONGER, length + _SHORTER + 1)
                for form in self._by_length.get(size, ())
            ]
            spans = [span for span in _pieces(text, placed, length) if allowed(*span)] if forms else []
            for at in range(0, len(spans), _ROWS):
                self._compare(text, spans[at : at + _ROWS], forms, threshold, found)
        best = sorted(found.items(), key=lambda item: (-item[1], item[0][2], item[0][3]))
        return [
            Candidate(term, form, text[start:end], start, end, round(alike, 3))
            for (term, form, start, end), alike in best
        ]

    def _compare(
        self, text: str, spans: list[tuple[int, int]], forms: list[tuple[str, str, _Sounds]], threshold: float,
        found: dict[tuple[str, str, int, int], float],
    ) -> None:  # fmt: skip
        heard = [_sounds(text[start:end]) for start, end in spans]
        alike = _compared(heard, [sounds for _, _, sounds in forms], threshold)
        sizes = np.array([len(sounds.letters) for _, _, sounds in forms])
        difference = np.abs(np.array([len(each.letters) for each in heard])[:, None] - sizes[None, :])
        # Keys of very different length cannot be alike.
        alike[difference > np.maximum(2, 0.4 * sizes)[None, :]] = 0.0
        for row, column in np.argwhere(alike >= max(threshold, 1e-9)):
            term, form, _ = forms[column]
            found[term, form, *spans[row]] = float(alike[row, column])


def _pieces(text: str, placed: Sequence[re.Match[str]], length: int) -> Iterator[tuple[int, int]]:
    """Runs of `length` units that have sounds and no pause between them."""
    for first in range(len(placed) - length + 1):
        run = placed[first : first + length]
        if all(sound(unit.group()) for unit in run) and all(
            _WITHIN.fullmatch(text, before.end(), after.start())
            and not _PAUSE.search(text, before.end(), after.start())
            for before, after in itertools.pairwise(run)
        ):
            yield run[0].start(), run[-1].start() + len(_CLITIC.sub("", run[-1].group()))
