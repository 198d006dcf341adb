"""A structure becomes an llguidance grammar, or a sentence that says why it cannot be followed.

llguidance (https://github.com/guidance-ai/llguidance) compiles a schema, regular expression, list of choices or grammar for
one tokenizer. What it accepts and no answer could ever fulfil is found here before a row begins.
"""

from __future__ import annotations

import json
from typing import Any, Final, assert_never

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from engine.types import Structure
from engine.worker.forms.endless import endless_grammar, endless_schema

LIMITS: Final = LLParserLimits(
    initial_lexer_fuel=500_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
"""Bounds of compiling, of one token (some 15 ms) and of memory (1-2 kB a state): beyond them a request is refused or ends."""
JSON_OPTIONS: Final[Any] = {
    # As json.dumps writes, compact, or indented; never unbounded blanks, in which a model can get stuck.
    "whitespace_pattern": r"\n[ \t]{0,32}| ",
    "whitespace_flexible": True,
    "json_allow_general_unicode_escapes": True,
    "coerce_one_of": False,
    "lenient": False,
}
"""They override `x-guidance` in a schema, which could otherwise make llguidance ignore parts of it."""


def compile_structure(tokenizer: LLTokenizer, structure: Structure) -> tuple[LLMatcher | None, str]:
    """A matcher before its first token, to be copied for each row; or None and why the structure cannot be followed."""
    grammar, refusal = translated(tokenizer, structure)
    return (None, refusal) if refusal else compiled(tokenizer, grammar)


def translated(tokenizer: LLTokenizer, structure: Structure) -> tuple[str, str]:
    """The structure in llguidance's own notation; or "" and why it cannot be followed."""
    try:
        grammar = _grammar(structure)
        endless = _is_endless(structure, tokenizer)
    except (ValueError, RecursionError, GbnfToLarkError) as error:
        return "", f"cannot be understood: {one_line(str(error))}"
    if endless:
        return "", "has no answer that could ever be complete: it needs itself inside itself, without end"
    return grammar, ""


def compiled(tokenizer: LLTokenizer, grammar: str) -> tuple[LLMatcher | None, str]:
    """A matcher of a `translated` structure, before its first token; or None and why it cannot be followed."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if matcher.is_error():
        return None, f"cannot be followed: {one_line(matcher.get_error())}"
    # The first mask shows whether any text has this form. The mask behind the text that must come first shows its cost.
    trial = matcher.deep_copy()
    trial.compute_bitmask()
    if not trial.is_error():
        trial.consume_tokens(trial.compute_ff_tokens())
        trial.compute_bitmask()
    if trial.is_error():
        return None, f"has no answer, or none that costs little enough to find: {one_line(trial.get_error())}"
    return matcher, ""


def one_line(problem: str) -> str:
    """A message of llguidance on one line of at most 300 characters, without the library's inner state."""
    return " ".join(problem.partition("<state>")[0].split())[:300]


def _grammar(structure: Structure) -> str:
    """In llguidance's own notation. Raises ValueError for what cannot be read."""
    match structure.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(structure.text, overrides=JSON_OPTIONS)
        case "regex":
            return LLMatcher.grammar_from_regex(structure.text)
        case "choice":
            # One expression: as alternatives of a grammar, some thousand choices are too many.
            return LLMatcher.grammar_from_regex("|".join(map(_literal, json.loads(structure.text))))
        case "grammar":
            return LLMatcher.grammar_from_lark(any_to_lark(structure.text))
        case _:
            assert_never(structure.kind)


def _literal(text: str) -> str:
    """The regular expression of exactly this text, in Rust's syntax."""
    return "".join(char if char.isalnum() or char in " _" else f"\\x{{{ord(char):x}}}" for char in text)


def _is_endless(structure: Structure, tokenizer: LLTokenizer) -> bool:
    def accepts_nothing(lark: str) -> bool | None:
        matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0, limits=LIMITS)
        return None if matcher.is_error() else matcher.is_accepting()

    match structure.kind:
        case "json_schema":
            return endless_schema(json.loads(structure.text))
        case "grammar":
            return endless_grammar(any_to_lark(structure.text), accepts_nothing)
        case _:
            return False
