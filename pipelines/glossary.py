"""A meeting's glossary: one term a line; after `|` or a tab, what a recogniser may hear instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from duet.errors import InvalidRequest
from speech.homophones import Candidate, candidates
from speech.text import read

MAX_TERMS, MAX_CHARACTERS, MAX_ALIASES = 500, 64, 16
NEAR = 0.6
"""From this similarity of sounds on, a term is shown to the reviewer first."""


@dataclass(frozen=True)
class Term:
    text: str
    aliases: tuple[str, ...] = ()


def parse(text: str) -> tuple[Term, ...]:
    """Terms in order, repeated ones merged. Raises `InvalidRequest` naming `glossary` and the line."""
    terms: dict[str, Term] = {}
    for number, line in enumerate(read(text, name="glossary").split("\n"), 1):
        # A table copied from a spreadsheet has tabs between its columns.
        name, *aliases = [" ".join(part.split()) for part in line.strip().replace("\t", "|").split("|")]
        if not name:
            if any(aliases):
                raise InvalidRequest(f"line {number} has aliases but no term", param="glossary")
            continue
        given = [alias for alias in aliases if alias]
        if any(len(part) > MAX_CHARACTERS for part in (name, *given)):
            raise InvalidRequest(f"line {number}: a term has at most {MAX_CHARACTERS} characters", param="glossary")
        if len(given) > MAX_ALIASES:
            raise InvalidRequest(f"line {number}: at most {MAX_ALIASES} aliases", param="glossary")
        known = terms[name].aliases if name in terms else ()
        terms[name] = Term(name, tuple(dict.fromkeys((*known, *given))))
    if len(terms) > MAX_TERMS:
        raise InvalidRequest(f"{len(terms)} terms; at most {MAX_TERMS}", param="glossary")
    return tuple(terms.values())


def near(text: str, terms: Sequence[Term]) -> list[Candidate]:
    """Pieces of `text` that sound like a term, the most similar first."""
    return candidates(text, [(term.text, term.aliases) for term in terms], threshold=NEAR)


def relevant(text: str, terms: Sequence[Term], *, limit: int) -> list[str]:
    """At most `limit` terms for one prompt: first those that sound like something in the text, then the others in order."""
    first = [candidate.term for candidate in near(text, terms)]
    return list(dict.fromkeys([*first, *(term.text for term in terms)]))[:limit]
