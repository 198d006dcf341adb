"""A meeting's glossary: one term a line; after `|` or a tab, what a recogniser may hear instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from duet.errors import InvalidRequest
from speech.homophones import Index
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


@lru_cache(maxsize=4)
def index(terms: tuple[Term, ...]) -> Index:
    """The glossary, made ready once for all windows of its meeting."""
    return Index([(term.text, term.aliases) for term in terms])


def relevant(text: str, terms: Sequence[Term], *, limit: int) -> list[str]:
    """At most `limit` terms for one prompt: first those that sound like something in the text, then the others in order."""
    found = index(tuple(terms)).candidates(text, threshold=NEAR)
    read = {candidate.term for candidate in found if candidate.heard.lower() == candidate.term.lower()}
    near = [candidate.term for candidate in found if candidate.term not in read]
    return list(dict.fromkeys([*near, *(term.text for term in terms)]))[:limit]
