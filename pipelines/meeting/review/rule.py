"""Correction without a model: text that sounds like a glossary term becomes that term, if `edits.apply` allows it.

It runs after the review model, on the text that the model left. Measured alone, it is the baseline for a language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pipelines.glossary import Term
from pipelines.meeting.review.edits import Proposal
from speech.homophones import candidates

THRESHOLD: Final = 0.78
"""Similarity of sounds (`speech.homophones`) from which on a piece of text is taken to be the term."""


def by_sound(text: str, terms: Sequence[Term], *, threshold: float = THRESHOLD) -> list[Proposal]:
    """One proposal for each term that a piece of `text` sounds like, the most similar first."""
    found = candidates(text, [(term.text, term.aliases) for term in terms], threshold=threshold)
    return [Proposal(candidate.heard, candidate.term) for candidate in found]
