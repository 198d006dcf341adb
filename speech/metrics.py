"""Error rates: CER and MER of text, DER of diarization."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from duet.wire import SpeakerTurn
from speech.normalise import characters, normalise, units

MAX_SPEAKERS = 12
"""The most speakers on the side that has fewer: the exact mapping of `der` takes time exponential in that number."""


@dataclass(frozen=True)
class ErrorCounts:
    """Edits from reference to hypothesis. `units` is the reference's length."""

    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0
    units: int = 0

    @property
    def rate(self) -> float:
        """Errors per unit. With an empty reference: the number of units inserted, so 0 when nothing was heard."""
        errors = self.substitutions + self.insertions + self.deletions
        return errors / self.units if self.units else float(errors)

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            self.substitutions + other.substitutions,
            self.insertions + other.insertions,
            self.deletions + other.deletions,
            self.units + other.units,
        )


def cer(reference: str, hypothesis: str) -> ErrorCounts:
    """Character errors after normalisation, spaces not counted."""
    return _count(characters(reference), characters(hypothesis))


def mer(reference: str, hypothesis: str) -> ErrorCounts:
    """Mixed errors: Han characters and words of other scripts."""
    return _count(units(normalise(reference)), units(normalise(hypothesis)))


def _count(reference: Sequence[str], hypothesis: Sequence[str]) -> ErrorCounts:
    counts: dict[str, int] = defaultdict(int)
    for operation in Levenshtein.editops(reference, hypothesis):
        counts[operation.tag] += 1
    return ErrorCounts(counts["replace"], counts["insert"], counts["delete"], len(reference))


@dataclass(frozen=True)
class DiarizationErrors:
    """Speaker time in seconds: speech that was missed, speech found where nobody spoke, speech given to another speaker, and
    the reference's total."""

    missed: float = 0.0
    false_alarm: float = 0.0
    confusion: float = 0.0
    total: float = 0.0

    @property
    def rate(self) -> float:
        """The diarization error rate; infinite when speech is found in a silent reference."""
        errors = self.missed + self.false_alarm + self.confusion
        return errors / self.total if self.total else math.inf if errors else 0.0

    def __add__(self, other: DiarizationErrors) -> DiarizationErrors:
        return DiarizationErrors(
            self.missed + other.missed,
            self.false_alarm + other.false_alarm,
            self.confusion + other.confusion,
            self.total + other.total,
        )


def der(
    reference: Sequence[SpeakerTurn], hypothesis: Sequence[SpeakerTurn], *, collar_seconds: float = 0.25
) -> DiarizationErrors:
    """Errors of a diarization (NIST RT) under the best mapping of speakers.

    Frames are 10 ms; those within `collar_seconds` of a boundary in the reference are not scored. Overlapping speech counts
    once for each speaker. Raises ValueError when both sides have more than `MAX_SPEAKERS`.
    """
    frames = _frames(reference, hypothesis, collar_seconds)
    names = sorted({name for spoken, _ in frames for name in spoken})
    labels = sorted({name for _, heard in frames for name in heard})
    overlap: dict[tuple[str, str], int] = defaultdict(int)
    missed = false_alarm = both = total = 0
    for spoken, heard in frames:
        total += len(spoken)
        missed += max(0, len(spoken) - len(heard))
        false_alarm += max(0, len(heard) - len(spoken))
        both += min(len(spoken), len(heard))
        for name in spoken:
            for label in heard:
                overlap[name, label] += 1
    confusion = both - _best_match(names, labels, overlap)
    return DiarizationErrors(missed / 100, false_alarm / 100, confusion / 100, total / 100)


def _frames(
    reference: Sequence[SpeakerTurn], hypothesis: Sequence[SpeakerTurn], collar_seconds: float
) -> list[tuple[frozenset[str], frozenset[str]]]:
    end = max((turn.end for turn in (*reference, *hypothesis)), default=0.0)
    count = round(end * 100) + 1
    spoken: list[set[str]] = [set() for _ in range(count)]
    heard: list[set[str]] = [set() for _ in range(count)]
    scored = [True] * count
    for turns, rows in ((reference, spoken), (hypothesis, heard)):
        for turn in turns:
            for i in range(round(turn.start * 100), min(count, round(turn.end * 100))):
                rows[i].add(turn.speaker)
    for turn in reference:
        for edge in (turn.start, turn.end):
            for i in range(
                max(0, round((edge - collar_seconds) * 100)), min(count, round((edge + collar_seconds) * 100))
            ):
                scored[i] = False
    return [(frozenset(a), frozenset(b)) for a, b, keep in zip(spoken, heard, scored, strict=True) if keep and (a or b)]


def _best_match(names: list[str], labels: list[str], overlap: dict[tuple[str, str], int]) -> int:
    """The most frames that a one-to-one mapping of the two sides can agree on.

    Exact, by dynamic programming over the sets of the smaller side that are mapped already. Raises ValueError when both
    sides have more than `MAX_SPEAKERS`.
    """
    few, many, flip = (names, labels, False) if len(names) <= len(labels) else (labels, names, True)
    if len(few) > MAX_SPEAKERS:
        raise ValueError(f"more than {MAX_SPEAKERS} speakers on both sides")
    best = [0] * (1 << len(few))  # best[mapped]: mapping exactly these of the smaller side, or fewer
    for one in many:
        for mapped in range(len(best) - 1, 0, -1):  # downwards: each of the larger side is used once
            for k, other in enumerate(few):
                if mapped >> k & 1:
                    agreed = overlap.get((one, other) if flip else (other, one), 0)
                    best[mapped] = max(best[mapped], best[mapped & ~(1 << k)] + agreed)
    return best[-1]
