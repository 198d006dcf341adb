"""One window of a review: the segments asked about together, the model's proposals, and the corrected text.

The pipeline and `duet bench cer` both call these functions, so that the benchmark measures what a meeting gets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.clients import Engine, Reviewer
from pipelines.glossary import Term
from pipelines.meeting.prompts import Line
from pipelines.meeting.review.draft import Draft, Span
from pipelines.meeting.review.edits import Decision, Proposal, Words, apply, apply_at
from pipelines.meeting.review.prompts import ask_review, read_review, review_schema, review_tokens
from pipelines.meeting.review.rule import by_alias, by_sound
from speech.homophones import similarity

SAME_TERM = 0.7
"""From this similarity of sounds on, a model's word is taken to be a glossary term."""


@dataclass(frozen=True)
class Window:
    """Segments to correct, and the segments around them, which the model only reads."""

    lines: tuple[Line, ...]
    before: tuple[Line, ...]
    after: tuple[Line, ...]

    @property
    def text(self) -> str:
        return "\n".join(text for _, text in (*self.before, *self.lines, *self.after))


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
    # Half a second of CPU for a long glossary and a long window.
    messages = await asyncio.to_thread(
        ask_review, window.before, window.lines, window.after, terms, glossary_terms=reviewer.glossary_terms
    )
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


@dataclass(frozen=True)
class Corrected:
    """A segment's text after all edits; `changed` are its places that differ from what was heard."""

    text: str
    changed: tuple[Span, ...]
    decisions: tuple[Decision, ...]


def corrected(
    text: str,
    proposals: Sequence[Proposal],
    terms: Sequence[Term],
    *,
    language: str | None = None,
    around: str = "",
    rule: bool = True,
) -> Corrected:
    """A segment's text with the glossary's aliases set, then the model's edits, and then, with `rule`, the edits by sound.

    `apply` checks the last two. `around`: the text of the segments beside it.
    """
    draft = Draft(text)
    decisions = by_alias(draft, terms)
    known = frozenset(term.text for term in terms)
    decisions += apply(
        draft, [as_term(proposal, terms) for proposal in proposals], Words(known, f"{draft.text}\n{around}")
    )
    if rule:
        found = by_sound(draft.text, terms, language=language)
        decisions += apply_at(draft, [((each.start, each.end), each.term) for each in found], Words(known))
    return Corrected(draft.text, draft.changed, tuple(decisions))
