"""Edits of a reviewer, checked by code: a language model's proposal is applied only if it can do no harm."""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import StrEnum
from typing import Literal

import msgspec

from speech.homophones import similarity
from speech.normalise import is_han, units

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
    SEGMENT = "too much of the segment would change"
    """More than `MAX_RATIO` of the segment's units, all accepted edits together. Glossary terms are exempt."""


class Proposal(msgspec.Struct, frozen=True):
    """Replace `source` by `target` in one segment."""

    source: str = msgspec.field(name="from")
    target: str = msgspec.field(name="to")


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """The decision on a proposal, as the timeline records it. `by` is the proposer: the review model, or the rule that
    compares sounds."""

    source: str = msgspec.field(name="from")
    target: str = msgspec.field(name="to")
    accepted: bool = False
    reason: str = ""
    by: Literal["model", "rule"] = "model"


def apply(
    text: str, proposals: list[Proposal], glossary: Collection[str], *, by: Literal["model", "rule"] = "model"
) -> tuple[str, list[Decision]]:
    """The text with the harmless edits, and a decision on every proposal, in order."""
    original, decisions, edited_units = text, [], 0
    total = max(1, len(units(original)))
    for proposal in proposals:
        reason = objection(text, proposal, glossary)
        size = max(len(units(proposal.source)), len(units(proposal.target)))
        # A short segment may consist of one misheard term and little else: two units may always change.
        if reason is None and edited_units + size > max(2, MAX_RATIO * total) and proposal.target not in glossary:
            reason = Refusal.SEGMENT
        if reason is None:
            text = text.replace(proposal.source, proposal.target, 1)
            edited_units += size
        decisions.append(Decision(proposal.source, proposal.target, reason is None, str(reason or ""), by))
    return text, decisions


def objection(text: str, proposal: Proposal, glossary: Collection[str]) -> str | None:
    """Why one edit must not be applied, as a `Refusal`, the similarity behind it where that is the reason; None if it may."""
    source, target = proposal.source, proposal.target
    if not source or source not in text:
        return Refusal.ABSENT
    if source == target:
        return Refusal.SAME
    before, after = units(source), units(target)
    if len(after) - len(before) > MAX_INSERTED_UNITS and target not in glossary:
        return Refusal.INSERTED
    lost = [unit for unit in before if unit.lower() not in FILLERS]
    if len(lost) - len(after) > MAX_DELETED_UNITS:
        return Refusal.DELETED
    if not after:
        return None if not lost else Refusal.ERASED
    changed = text.replace(source, target, 1)
    if _found(_NUMBERS, text) != _found(_NUMBERS, changed):
        return Refusal.NUMBER
    if _found(_NEGATIONS, text) != _found(_NEGATIONS, changed):
        return Refusal.NEGATION
    if target not in glossary and len(_scripts(target)) > len(_scripts(source)):
        return Refusal.SCRIPTS
    alike = similarity(source, target)
    if alike < MIN_SIMILARITY:
        return f"{Refusal.SOUND} ({alike:.2f})"
    return None


def protected(text: str) -> tuple[list[str], list[str]]:
    """Its numbers and its negations, which no edit may change."""
    return _found(_NUMBERS, text), _found(_NEGATIONS, text)


def _scripts(text: str) -> set[bool]:
    """Whether its letters are Han characters: {True}, {False}, or both."""
    return {is_han(character) for character in text if character.isalpha()}


def _found(pattern: re.Pattern[str], text: str) -> list[str]:
    return sorted(match.lower() for match in pattern.findall(text))
