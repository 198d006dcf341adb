"""Correction without a model: places that sound like a glossary term become that term, if the guard agrees.

It runs after the review model, for what that left. Measured alone it is what a language model has to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pipelines.glossary import Term
from pipelines.meeting.review.edits import Proposal
from speech.homophones import candidates

THRESHOLD: Final = 0.78
"""Similarity of sounds (`speech.homophones`) from which on a place is taken for the term."""


def by_sound(text: str, terms: Sequence[Term], *, threshold: float = THRESHOLD) -> list[Proposal]:
    """One proposal for each term that some place of `text` sounds like, the most alike first."""
    found = candidates(text, [(term.text, term.aliases) for term in terms], threshold=threshold)
    return [Proposal(candidate.heard, candidate.term) for candidate in found]
