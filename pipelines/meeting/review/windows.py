"""One window of a review: the segments asked about together, the model's proposals, and the corrected text.

The pipeline and `duet bench cer` both call these functions, so that the benchmark measures what a meeting gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.clients import Engine, Reviewer
from pipelines.glossary import Term
from pipelines.meeting.prompts import Line
from pipelines.meeting.review.edits import Decision, Proposal, apply
from pipelines.meeting.review.prompts import ask_review, read_review, review_schema, review_tokens
from pipelines.meeting.review.rule import by_sound
from speech.homophones import similarity

SAME_TERM = 0.7
"""From this similarity of sounds on, a model's word is taken to be a glossary term."""


@dataclass(frozen=True)
class Window:
    """Segments to correct, and the segments around them, which the model only reads."""

    lines: tuple[Line, ...]
    before: tuple[Line, ...]
    after: tuple[Line, ...]


def windows(lines: Sequence[Line], reviewer: Reviewer) -> list[Window]:
    """All segments of a meeting, as many at once and with as much around them as the reviewer's card says."""
    size, beside = reviewer.window_segments, reviewer.context_segments
    return [
        Window(
            tuple(lines[start : start + size]),
            tuple(lines[max(0, start - beside) : start]),
            tuple(lines[start + size : start + size + beside]),
        )
        for start in range(0, len(lines), size)
    ]


async def propose(
    engine: Engine, reviewer: Reviewer, window: Window, terms: Sequence[Term]
) -> dict[str, list[Proposal]]:
    """The model's edits by segment id.

    Raises `DuetError` when the engine fails, ValueError or `msgspec.ValidationError` for an answer in no readable form.
    """
    messages = ask_review(window.before, window.lines, window.after, terms, glossary_terms=reviewer.glossary_terms)
    tokens, schema = review_tokens(window.lines), review_schema(window.lines)
    answer = await engine.chat(reviewer.id, messages, max_tokens=tokens, schema=schema)
    return read_review(answer, window.lines)


def as_term(proposal: Proposal, terms: Sequence[Term]) -> Proposal:
    """The proposal with the glossary's spelling: small models find where a term belongs and then write it almost right."""
    target = proposal.target
    if any(target in (term.text, *term.aliases) for term in terms):
        return next((Proposal(proposal.source, term.text) for term in terms if target in term.aliases), proposal)
    alike = max(((similarity(target, term.text), term.text) for term in terms), default=(0.0, ""))
    return Proposal(proposal.source, alike[1]) if alike[0] >= SAME_TERM else proposal


def corrected(
    text: str, proposals: list[Proposal], terms: Sequence[Term], *, rule: bool = True
) -> tuple[str, tuple[Decision, ...]]:
    """A segment's text after the model's edits and then, with `rule`, the edits by sound. `apply` checks each of them."""
    known = {term.text for term in terms}
    text, by_model = apply(text, [as_term(proposal, terms) for proposal in proposals], known)
    if not rule:
        return text, tuple(by_model)
    text, by_rule = apply(text, by_sound(text, terms), known, by="rule")
    return text, (*by_model, *by_rule)
