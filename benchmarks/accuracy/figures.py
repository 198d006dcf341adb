"""Figures of one arm against another: error counts, glossary terms, bootstrap intervals. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from pipelines.meeting.edits import protected
from speech.metrics import ErrorCounts, cer, mer
from speech.normalise import normalise

SAMPLES = 2_000
INTERVAL = 95.0


@dataclass(frozen=True)
class Scored:
    """One utterance's reference, what was heard, and what an arm made of it."""

    reference: str
    heard: str
    text: str
    terms: tuple[str, ...]


@dataclass(frozen=True)
class Figures:
    """Rates are shares of 1. `cer_interval` and `difference_interval` (against what was heard) are bootstrap percentiles.

    `term_recall`: occurrences of glossary terms in the references that the text has too; `term_precision`: of those in the
    text, that the references have too. None where there are none. `protected_changed`: utterances whose numbers or
    negations the arm changed.
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


def figures(rows: Sequence[Scored], glossary: Sequence[str], *, seed: int = 7) -> Figures:
    """Raises ValueError without rows."""
    if not rows:
        raise ValueError("nothing to score")
    before = [cer(row.reference, row.heard) for row in rows]
    after = [cer(row.reference, row.text) for row in rows]
    found = [term_counts(row.reference, row.text, glossary) for row in rows]
    right, said, written = (sum(column) for column in zip(*found, strict=True))
    errors, base = _errors(after), _errors(before)
    lengths = np.array([count.units for count in after])
    return Figures(
        len(rows),
        reduce(add, after),
        reduce(add, (mer(row.reference, row.text) for row in rows)),
        _interval(lambda chosen: errors[chosen].sum() / max(1, lengths[chosen].sum()), len(rows), seed),
        _interval(lambda chosen: (errors - base)[chosen].sum() / max(1, lengths[chosen].sum()), len(rows), seed),
        right / said if said else None,
        right / written if written else None,
        int((errors < base).sum()),
        int((errors > base).sum()),
        sum(protected(row.heard) != protected(row.text) for row in rows),
    )


def term_counts(reference: str, text: str, glossary: Sequence[str]) -> tuple[int, int, int]:
    """Occurrences of the terms in both, in the reference, and in the text; after normalisation, spaces not counted."""
    one, other = (normalise(part).replace(" ", "") for part in (reference, text))
    right = said = written = 0
    for term in glossary:
        wanted = normalise(term).replace(" ", "")
        in_one, in_other = one.count(wanted), other.count(wanted)
        right, said, written = right + min(in_one, in_other), said + in_one, written + in_other
    return right, said, written


def _errors(counts: Sequence[ErrorCounts]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([count.substitutions + count.insertions + count.deletions for count in counts], dtype=np.int64)


def _interval(
    statistic: Callable[[np.ndarray[tuple[int], np.dtype[np.int64]]], float], size: int, seed: int
) -> tuple[float, float]:
    """Percentile bootstrap over utterances (Efron; for error rates Bisani and Ney, ICASSP 2004). Seeded."""
    draws = np.random.default_rng(seed)
    found = [float(statistic(draws.integers(0, size, size))) for _ in range(SAMPLES)]
    tail = (100 - INTERVAL) / 2
    low, high = np.percentile(found, [tail, 100 - tail])
    return float(low), float(high)
