"""How the embedded review model is asked: the one task that it was trained on, in its own words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from pipelines.glossary import Term, relevant
from pipelines.meeting.edits import Proposal
from pipelines.meeting.prompts import Line, Messages
from speech.homophones import similarity
from speech.normalise import is_han

MAX_TOKENS: Final = 48


def ask_tiny(line: Line, terms: Sequence[Term], *, glossary_terms: int) -> Messages:
    """One segment and the terms nearest to it."""
    text = tiny_text(line[1])
    shown = "、".join(relevant(text, terms, limit=glossary_terms))
    return [{"role": "user", "content": f"术语：{shown}\n找错：{text}"}]


def read_tiny(answer: str, line: Line, terms: Sequence[Term]) -> dict[str, list[Proposal]]:
    """Lines of `heard→term`, or of `heard` alone. What stands after the arrow is often misspelt: the place that the model
    found is trusted, the term is the one that sounds nearest."""
    name, text = line
    proposals = []
    for row in answer.splitlines():
        heard = row.partition("→")[0].strip()
        if len(heard) < 2:
            continue
        same_script = [term for term in terms if is_han(term.text[:1]) == is_han(heard[:1])]
        scored = [
            (max(similarity(heard, form) for form in (term.text, *term.aliases)), term.text) for term in same_script
        ]
        if scored and heard in text and max(scored)[1] not in text:
            proposals.append(Proposal(heard, max(scored)[1]))
    return {name: proposals} if proposals else {}


def tiny_text(text: str) -> str:
    """As the embedded model was trained: lower case, no punctuation, spaces only between Latin words."""
    text = re.sub(r"\s+", " ", re.sub("[，。？,.?]", " ", text.lower())).strip()
    return re.sub(r"(?<=[\u4e00-\u9fff]) | (?=[\u4e00-\u9fff])", "", text)
