"""Edits of a reviewer, checked by code: a language model's proposal is applied only if it can do no harm."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import msgspec

from pipelines.meeting.review.draft import Draft, Span
from speech.homophones import similarity
from speech.normalise import is_han, units
from speech.words import cuts_word, is_common, mentions, occurrences

MAX_RATIO, MAX_INSERTED_UNITS, MAX_DELETED_UNITS = 0.35, 2, 3
MIN_SIMILARITY = 0.6
"""Of sounds: recognisers confuse what sounds alike. Below it, even edits towards a glossary term did more harm than good."""
FILLERS = frozenset({"嗯", "呃", "啊", "额", "um", "uh", "er", "erm"})
_HAN_NUMERAL = "零〇一二两三四五六七八九十百千万亿"
# A single Han numeral is a number only before a measure word; elsewhere it can be misheard like any other syllable.
_NUMBERS = re.compile(
    rf"\d+(?:[.,:]\d+)*|第[{_HAN_NUMERAL}]+|[{_HAN_NUMERAL}]{{2,}}"
    rf"|[{_HAN_NUMERAL}](?=[个天周月日年点分秒号次台人位倍成岁块元度条件项])"
    r"|\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|hundred|thousand)\b",
    re.IGNORECASE,
)
_NEGATIONS = re.compile(r"不|没|无|非|别|未|\b(?:not|no|never|none|cannot)\b|n't\b", re.IGNORECASE)


class Refusal(StrEnum):
    """Why a proposed edit is refused, in the words that the timeline records. The first that holds is the reason."""

    ABSENT = "the text to replace is not in the segment"
    INSIDE = "it is part of a longer word"
    SAME = "nothing would change"
    INSERTED = "too much would be inserted"
    """More than `MAX_INSERTED_UNITS` units (a unit is a Han character or a word). Glossary terms may be longer."""
    DELETED = "too much would be deleted"
    """More than `MAX_DELETED_UNITS` units, fillers not counted."""
    ERASED = "a word would be deleted"
    """Only fillers may go without a replacement."""
    NUMBER = "a number would change"
    NEGATION = "a negation would change"
    SCRIPTS = "scripts would be mixed"
    """Han characters and letters in one replacement. Glossary terms may mix them."""
    SOUND = "it does not sound alike"
    """The similarity of the sounds is below `MIN_SIMILARITY`; it follows in brackets."""
    ORDINARY = "an ordinary word may have been meant"
    """Both are ordinary words (rest, Rust), and no other term of the glossary is in the window: sounds alone do not decide."""
    SEGMENT = "too much of the segment would change"
    """More than `MAX_RATIO` of the segment's units, all accepted edits together. Glossary terms are exempt."""


class Proposal(msgspec.Struct, frozen=True):
    """Replace `source` by `target` in one segment, wherever it stands there as a word."""

    source: str = msgspec.field(name="from")
    target: str = msgspec.field(name="to")


By = Literal["model", "rule", "alias"]


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """The decision on a proposal, as the timeline records it; an accepted one has one decision for each place.

    `start` and `end` are its place in the segment's text as it was heard. `by` is the proposer: the review model, the rule
    that compares sounds, or an alias of the glossary.
    """

    source: str = msgspec.field(name="from")
    target: str = msgspec.field(name="to")
    accepted: bool = False
    reason: str = ""
    by: By = "model"
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Words:
    """What an edit may set beyond what the guard allows others: the glossary's terms. `around`: text of the segment and of those
    beside it."""

    terms: frozenset[str] = frozenset()
    around: str = ""

    def speaks_of_others(self, term: str) -> bool:
        """Whether the text around has a term of the glossary besides this one."""
        return any(other != term and mentions(self.around, other) for other in self.terms)


def apply(draft: Draft, proposals: Sequence[Proposal], words: Words) -> list[Decision]:
    """Makes the model's harmless edits in `draft`; at least one decision on every proposal, in order."""
    decisions = list[Decision]()
    budget = _Budget(draft.text)
    for proposal in (Proposal(each.source.strip(), each.target.strip()) for each in proposals):
        found = places(draft.text, proposal.source)
        if not found:
            reason = Refusal.INSIDE if proposal.source and proposal.source in draft.text else Refusal.ABSENT
            decisions.append(Decision(proposal.source, proposal.target, reason=str(reason)))
        decisions += _at_all(draft, found, proposal.target, words, budget, "model")
    return decisions


def apply_at(draft: Draft, edits: Sequence[tuple[Span, str]], words: Words) -> list[Decision]:
    """The same for edits of the rule, which knows their places: in order, and apart from each other."""
    decisions = list[Decision]()
    budget, moved = _Budget(draft.text), 0
    for (start, end), target in edits:
        before = len(draft.text)
        decisions += _at_all(draft, [(start + moved, end + moved)], target, words, budget, "rule")
        moved += len(draft.text) - before
    return decisions


def _at_all(
    draft: Draft, found: Sequence[Span], target: str, words: Words, budget: _Budget, by: By
) -> Iterator[Decision]:
    """One decision for each place, up to the first that is refused."""
    moved = 0
    for start, end in found:
        place = start + moved, end + moved
        source = draft.text[slice(*place)]
        reason = objection(draft.text, place, target, words) or budget.objection(source, target, words)
        if reason is not None:
            yield Decision(source, target, reason=str(reason), by=by)
            return
        budget.spend(source, target)
        first, last = draft.replace(*place, target)
        yield Decision(source, target, True, by=by, start=first, end=last)
        moved += len(target) - len(source)


class _Budget:
    """How much of a segment may change, all accepted edits together."""

    def __init__(self, text: str) -> None:
        # A short segment may consist of one misheard term and little else: two units may always change.
        self._left = max(2.0, MAX_RATIO * max(1, len(units(text))))

    def objection(self, source: str, target: str, words: Words) -> Refusal | None:
        fits = _size(source, target) <= self._left or target in words.terms
        return None if fits else Refusal.SEGMENT

    def spend(self, source: str, target: str) -> None:
        self._left -= _size(source, target)


def _size(source: str, target: str) -> int:
    return max(len(units(source)), len(units(target)))


def places(text: str, source: str) -> list[Span]:
    """Where `source` stands in `text` as a word of its own.

    Han characters that are part of a longer word there are left out if they stand alone elsewhere; a single one is a word or
    nothing.
    """
    found = list(occurrences(text, source))
    whole = [place for place in found if not cuts_word(text, *place)]
    return whole if whole or len(source.strip()) < 2 else found


def objection(text: str, place: Span, target: str, words: Words) -> str | None:
    """Why text[start:end] must not become `target`, as a `Refusal`, the similarity behind it where that is the reason; None if it
    may."""
    source, known = text[slice(*place)], target in words.terms
    if source == target:
        return Refusal.SAME
    before, after = units(source), units(target)
    if len(after) - len(before) > MAX_INSERTED_UNITS and not known:
        return Refusal.INSERTED
    lost = [unit for unit in before if unit.lower() not in FILLERS]
    if len(lost) - len(after) > MAX_DELETED_UNITS:
        return Refusal.DELETED
    if not after:
        return None if not lost else Refusal.ERASED
    changed = text[: place[0]] + target + text[place[1] :]
    if _found(_NUMBERS, text) != _found(_NUMBERS, changed):
        return Refusal.NUMBER
    if _found(_NEGATIONS, text) != _found(_NEGATIONS, changed):
        return Refusal.NEGATION
    if not known and len(_scripts(target)) > len(_scripts(source)):
        return Refusal.SCRIPTS
    alike = similarity(source, target)
    if alike < MIN_SIMILARITY:
        return f"{Refusal.SOUND} ({alike:.2f})"
    if known and source.lower() != target.lower() and is_common(source) and is_common(target):
        return None if words.speaks_of_others(target) else Refusal.ORDINARY
    return None


def protected(text: str) -> tuple[list[str], list[str]]:
    """Its numbers and its negations, which no edit may change."""
    return _found(_NUMBERS, text), _found(_NEGATIONS, text)


def _scripts(text: str) -> set[bool]:
    """Whether its letters are Han characters: {True}, {False}, or both."""
    return {is_han(character) for character in text if character.isalpha()}


def _found(pattern: re.Pattern[str], text: str) -> list[str]:
    return sorted(match.lower() for match in pattern.findall(text))
