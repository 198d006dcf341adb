"""Schemas and grammars that no finite answer fulfils: every value needs another of its kind inside it.

llguidance refuses contradictions, but not these. Both checks are one-sided. True is certain; whatever they cannot judge
(references that are not local pointers, directives) counts as having an end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

_PASSES = 64
"""Rounds of the search for references that have an end. One round settles a chain of references that is written in order; a
few settle any real schema."""


def endless_schema(schema: dict[str, Any]) -> bool:
    """Whether no finite value fulfils a JSON schema, because of its references.

    The search is a least fixed point: a reference has an end if its target has one, given the references that are already
    known to have one.
    """
    targets = {pointer: _resolved(schema, pointer) for pointer in _references(schema)}
    ending = {pointer for pointer, target in targets.items() if target is None}
    for _ in range(_PASSES):
        before = len(ending)
        for name in reversed(targets):
            if name not in ending and _ends(targets[name], ending):
                ending.add(name)
        if len(ending) == before:
            return not _ends(schema, ending)
    return False


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from _references(item)


def _resolved(schema: dict[str, Any], pointer: str) -> Any:
    """The target of a pointer such as `#/a/b/0` (RFC 6901). None if it is not a local pointer, or points to nothing."""
    if pointer != "#" and not pointer.startswith("#/"):
        return None
    node: Any = schema
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict):
            node = node.get(name)
        elif isinstance(node, list) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        else:
            return None
    return node


def _ends(node: Any, ending: set[str]) -> bool:
    """Whether some value of this schema can be finite, given that the references in `ending` can."""
    if not isinstance(node, dict) or "const" in node or "enum" in node:
        return True
    if isinstance(node.get("$ref"), str) and node["$ref"] not in ending:
        return False
    for name in ("anyOf", "oneOf"):
        if isinstance(node.get(name), list) and not any(_ends(item, ending) for item in node[name]):
            return False
    if isinstance(node.get("allOf"), list) and not all(_ends(item, ending) for item in node["allOf"]):
        return False
    return all(_ends(part, ending) for part in _needed(node))


def _needed(node: dict[str, Any]) -> Iterator[Any]:
    """The schemas of the values that every value of `node` must contain; none where `node` allows several types."""
    kind = node.get("type")
    if kind in ("object", ["object"]) and isinstance(node.get("required"), list):
        properties = node.get("properties")
        found = properties if isinstance(properties, dict) else {}
        yield from (found.get(name) for name in node["required"] if isinstance(name, str))
    if kind in ("array", ["array"]) and isinstance(node.get("minItems"), int):
        first = node["prefixItems"] if isinstance(node.get("prefixItems"), list) else []
        yield from first[: node["minItems"]]
        if node["minItems"] > len(first):
            yield node.get("items")


_TERMINAL = r"_*[A-Z][A-Z0-9_]*"
_ERASED = re.compile(
    r"(?P<literal>\"(?:\\.|[^\"\\\n])*\"i?(?:\s*\.\.\s*\"(?:\\.|[^\"\\\n])*\")?"
    r"|/(?![/*])(?:\\.|[^/\\\n])+/[a-z]*|<[^>\s]+>)"
    r"|(?P<comment>//[^\n]*|#[^\n]*)"
    rf"|(?<![\w.])(?P<terminal>{_TERMINAL})(?!\w)(?!\s*(?:\.\s*-?\d+)?\s*:)"
)
_UNKNOWN = re.compile(r"%|::|\w\s*\[|@")
"""What the check cannot judge: directives, parameters, attributes and names of other grammars."""


def endless_grammar(lark: str, accepts_nothing: Callable[[str], bool | None]) -> bool:
    """Whether no finite text fulfils a grammar in Lark's notation, because of its recursion.

    A rule can end if and only if it derives the empty text after every terminal is replaced by the empty text.
    `accepts_nothing` tells whether the empty text fulfils a grammar; None if the grammar is not valid.
    """
    lines = [line for line in lark.splitlines() if not re.match(r"\s*%(ignore|import)\b", line)]
    erased = _ERASED.sub(lambda found: "" if found["comment"] else '""', "\n".join(lines))
    if _UNKNOWN.search(erased):
        return False
    return accepts_nothing(erased) is False
