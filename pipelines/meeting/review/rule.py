"""Correction without a model. An alias of the glossary becomes its term: that is the user's word. Text that sounds like a term
becomes it if nobody would say that text.

The sounds are compared after the review model, on the text that it left. Measured alone, they are the baseline for a language
model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from pipelines.glossary import Term, index
from pipelines.meeting.review.draft import Draft, Span
from pipelines.meeting.review.edits import Decision
from speech.homophones import Candidate, skeleton
from speech.normalise import HAN, is_han, units
from speech.words import (
    RARE,
    chance,
    cuts_word,
    han_words,
    inside,
    is_common,
    is_han_word,
    is_listed,
    languages,
    occurrences,
)

THRESHOLD: Final = 0.78
"""Similarity of sounds (`speech.homophones`) from which on a piece of text is taken to be the term."""
SURE: Final = 0.95
"""The same where little speaks for a mishearing: the sounds must be all but equal."""
LONG_HAN: Final = 4
"""From so many syllables on equal sounds are no accident."""
LONG_HAN_THRESHOLD: Final = 0.85
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
_OTHER = re.compile(rf"[^\W\d_A-Za-z\u00c0-\u024f{HAN}]")
UNLIKELY: Final = 5 * RARE
"""Words that come together more often by chance, in running text, were probably said."""
SHORT: Final = 5
"""Latin terms of fewer letters resemble too much. Acronyms are spelt out, not pronounced as they are written."""


def by_alias(draft: Draft, terms: Sequence[Term]) -> list[Decision]:
    """Sets every term in the place of its aliases, longest first. An alias inside a longer term that was said stays."""
    decisions = list[Decision]()
    for alias, term in sorted(((a, t.text) for t in terms for a in t.aliases), key=lambda pair: -len(pair[0])):
        taken = [*draft.changed, *_said(draft.text, terms, longer_than=len(alias))]
        moved = 0
        for start, end in _heard_as(draft.text, alias):
            source = draft.text[start + moved : end + moved]
            if source != term and not any(a < end and start < b for a, b in taken):
                first, last = draft.replace(start + moved, end + moved, term)
                moved += len(term) - len(source)
                decisions.append(Decision(source, term, True, by="alias", start=first, end=last))
    return decisions


def _said(text: str, terms: Sequence[Term], *, longer_than: int = 0) -> list[Span]:
    """Where terms stand as they are written, in any case."""
    return [
        place for term in terms if len(term.text) > longer_than for place in occurrences(text, term.text, any_case=True)
    ]


def _heard_as(text: str, alias: str) -> Iterator[Span]:
    """Where an alias stands as whole words, in any case. Two Han characters or fewer must be a word of their own."""
    for place in list(occurrences(text, alias, any_case=True)):
        if len(alias) > 2 or not cuts_word(text, *place):
            yield place


def by_sound(
    text: str, terms: Sequence[Term], *, language: str | None = None, threshold: float = THRESHOLD
) -> list[Candidate]:
    """Pieces of `text` that can only be a misheard term, apart from each other, in order.

    No ordinary word is among them, and no term that is one: for them it takes a model, which knows what is spoken of.
    """
    said = _said(text, terms)

    def allowed(start: int, end: int) -> bool:
        return not any(a < end and start < b for a, b in said) and is_unlikely(text, (start, end), language)

    found = index(tuple(terms)).candidates(text, threshold=threshold, allowed=allowed)
    chosen = list[Candidate]()
    for candidate in found:
        # An ordinary word of three Han characters or more is no accident of sounds.
        ordinary = is_common(candidate.term) and not (is_han(candidate.term) and len(candidate.term) > 2)
        if ordinary or candidate.similarity < _needed(text, candidate, language):
            continue
        if not any(other.start < candidate.end and candidate.start < other.end for other in chosen):
            chosen.append(candidate)
    return sorted(chosen, key=lambda candidate: candidate.start)


def _needed(text: str, candidate: Candidate, language: str | None) -> float:
    """How alike the sounds must be, by what was heard: more than 1 for what no recogniser confuses."""
    heard, form = units(candidate.heard), candidate.form
    if {is_han(unit) for unit in heard} != {is_han(unit) for unit in units(form)}:
        return 2.0
    if is_han(form):
        long = min(len(heard), len(units(form))) >= LONG_HAN and not cuts_word(text, candidate.start, candidate.end)
        return LONG_HAN_THRESHOLD if long and all(word in form for word in han_words(candidate.heard)) else SURE
    letters = "".join(units(form))
    short = min(len(letters), len("".join(heard))) < SHORT or letters.isupper()
    begins = skeleton(candidate.heard)[:1] == skeleton(form)[:1]
    ordinary = all(is_listed(unit, language) for unit in heard if not is_han(unit))
    return SURE if short or ordinary or not begins else THRESHOLD


def is_unlikely(text: str, place: Span, language: str | None) -> bool:
    """Whether text[start:end] is whole words that nobody would say: a word of no list, or words that hardly ever come together.
    A long run of Han characters may begin and end anywhere: where it was misheard, words are not what they seem."""
    start, end = place
    heard = text[start:end]
    latin = _LATIN.search(heard) is not None
    if _OTHER.search(heard):
        return False
    if inside(text, start, end) or is_han_word(heard) or (len(heard) < LONG_HAN and cuts_word(text, start, end)):
        return False
    if latin and not languages(language):
        return False
    if language == "ja" and not heard.isascii():  # its Han characters have other sounds
        return False
    # Joined as well: "air flow" is airflow.
    if heard.isdigit() or (latin and is_listed("".join(units(heard)), language)):
        return False
    return chance(heard, language) < UNLIKELY
