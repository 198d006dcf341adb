"""Figures of one arm against another: error counts, glossary terms, bootstrap intervals. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from operator import add
from typing import Any

import numpy as np

from pipelines.meeting.review.edits import protected
from speech.metrics import ErrorCounts, cer, mer
from speech.normalise import normalise, units

SAMPLES = 2_000
INTERVAL = 95.0
SEED = 7
DRAWN_AT_ONCE = 1_000_000
"""In utterances: bounds the memory of a bootstrap over a large manifest."""

Whole = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Scored:
    """One utterance's reference, what was heard, and what an arm made of it."""

    reference: str
    heard: str
    text: str


@dataclass(frozen=True)
class Figures:
    """Rates are shares of 1. `cer_interval` and `difference_interval` (against what was heard) are bootstrap percentiles.

    `term_recall`: the share of the references' glossary terms that the texts have; `term_precision`: the share of the texts'
    glossary terms that the references have. None when there are no terms. `protected_changed`: the number of utterances
    whose numbers or negations the arm changed.
    """

    utterances: int
    cer: ErrorCounts
    mer: ErrorCounts
    cer_interval: tuple[float, float]
    difference_interval: tuple[float, float]
    term_recall: float | None
    term_precision: float | None
    better: int
    worse: int
    protected_changed: int


def figures(rows: Sequence[Scored], glossary: Sequence[str], *, seed: int = SEED) -> Figures:
    """Raises ValueError without rows."""
    if not rows:
        raise ValueError("nothing to score")
    before = [cer(row.reference, row.heard) for row in rows]
    after = [cer(row.reference, row.text) for row in rows]
    found = [term_counts(row.reference, row.text, glossary) for row in rows]
    right, said, written = (sum(column) for column in zip(*found, strict=True))
    errors, base = _errors(after), _errors(before)
    lengths = np.array([count.units for count in after], dtype=np.int64)
    cer_interval, difference_interval = _intervals((errors, errors - base), lengths, seed)
    return Figures(
        len(rows),
        reduce(add, after),
        reduce(add, (mer(row.reference, row.text) for row in rows)),
        cer_interval,
        difference_interval,
        right / said if said else None,
        right / written if written else None,
        int((errors < base).sum()),
        int((errors > base).sum()),
        sum(protected(row.heard) != protected(row.text) for row in rows),
    )


def term_counts(reference: str, text: str, glossary: Sequence[str]) -> tuple[int, int, int]:
    """Occurrences of the terms in both, in the reference, and in the text.

    Texts are normalised and spaces ignored ("click house" is "clickhouse"). A term must begin and end where a Han character
    or word does: "array" does not have "ray".
    """
    one, other = _Bounded.of(reference), _Bounded.of(text)
    right = said = written = 0
    for term in glossary:
        wanted = _Bounded.of(term).letters
        in_one, in_other = one.count(wanted), other.count(wanted)
        right, said, written = right + min(in_one, in_other), said + in_one, written + in_other
    return right, said, written


@dataclass(frozen=True)
class _Bounded:
    """Normalised text without spaces, and the positions between its units."""

    letters: str
    bounds: frozenset[int]

    @classmethod
    def of(cls, text: str) -> _Bounded:
        found = units(normalise(text))
        return cls("".join(found), frozenset(accumulate(map(len, found), initial=0)))

    def count(self, wanted: str) -> int:
        """Occurrences that do not overlap; 0 for an empty `wanted`."""
        found, start = 0, self.letters.find(wanted) if wanted else -1
        while start >= 0:
            end = start + len(wanted)
            whole = start in self.bounds and end in self.bounds
            found += whole
            start = self.letters.find(wanted, end if whole else start + 1)
        return found


def _errors(counts: Sequence[ErrorCounts]) -> Whole:
    return np.array([count.substitutions + count.insertions + count.deletions for count in counts], dtype=np.int64)


def _intervals(columns: Sequence[Whole], lengths: Whole, seed: int) -> list[tuple[float, float]]:
    """Intervals of each column's sum per unit of reference, by percentile bootstrap over utterances (Efron; for error rates
    Bisani and Ney, ICASSP 2004). Seeded; all columns see the same draws."""
    generator, size = np.random.default_rng(seed), len(lengths)
    rates: list[list[float]] = [[] for _ in columns]
    rows = max(1, DRAWN_AT_ONCE // size)
    for first in range(0, SAMPLES, rows):
        chosen = generator.integers(0, size, (min(rows, SAMPLES - first), size))
        units_drawn = np.maximum(1, lengths[chosen].sum(axis=1))
        for column, found in zip(columns, rates, strict=True):
            found += (column[chosen].sum(axis=1) / units_drawn).tolist()
    tail = (100 - INTERVAL) / 2
    bounds = [np.percentile(found, [tail, 100 - tail]) for found in rates]
    return [(float(low), float(high)) for low, high in bounds]
