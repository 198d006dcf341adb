"""Random JSON schemas and regular expressions, the same for the same seed. A random model reaches the end of each.

Only the last repetition of an expression may be unbounded. In an unbounded repetition thousands of tokens continue it
and few end it, and the benchmark can raise the probability of one end only: the end of the whole answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any, Final

Schema = dict[str, Any]

WORDS: Final = ("id", "name", "日期", "a b", 'say "hi"', "x_y", "Größe", "tags", "n", "ok?")
PATTERNS: Final = ("^[A-Z]{2}-[0-9]{3,5}$", "^(red|green|blue)[0-9]?$", "^a{1,3}b?$", '^[^aeiou"\\\\\\x00-\\x1f]{4,9}$')
FORMATS: Final = ("date", "uuid", "ipv4", "ipv6")
_DEFINITIONS: Final[Schema] = {
    "point": {
        "type": "object",
        "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 9}, "y": {"type": "boolean"}},
        "required": ["x", "y"],
        "additionalProperties": False,
    },
    "chain": {
        "type": "object",
        "properties": {"value": {"enum": [1, 2.5, None]}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/chain"}]}},
        "required": ["value", "next"],
        "additionalProperties": False,
    },
}  # fmt: skip


def random_schemas(count: int, seed: int) -> list[Schema]:
    """Schemas with an object at the root, as OpenAI requires. Any part may refer to two definitions; one is recursive."""
    rng = random.Random(seed)
    return [{**_object(rng, 3), "$defs": _DEFINITIONS} for _ in range(count)]


def _any(rng: random.Random, depth: int) -> Schema:
    makers: list[Callable[[random.Random, int], Schema]]
    makers = [_integer, _number, _string, _pattern, _format, _enum, _constant, _simple, _reference]
    if depth:
        makers += [_object, _object, _array, _array, _tuple, _any_of, _one_of]
    return rng.choice(makers)(rng, depth - 1)


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(WORDS, rng.randint(1, 4))
    required = [name for name in names if rng.random() < 0.7]
    properties = {name: _any(rng, depth) for name in names}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(0, 2)
    return {"type": "array", "items": _any(rng, depth), "minItems": least, "maxItems": least + rng.randint(0, 2)}


def _tuple(rng: random.Random, depth: int) -> Schema:
    parts = [_any(rng, depth) for _ in range(rng.randint(1, 3))]
    return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}


def _any_of(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [_any(rng, depth) for _ in range(rng.randint(2, 3))]}


def _one_of(rng: random.Random, depth: int) -> Schema:
    """Alternatives of different types, so that every value matches exactly one."""
    return {"oneOf": [_string(rng, depth), _integer(rng, depth), _array(rng, 0)]}


def _integer(rng: random.Random, _: int) -> Schema:
    low = rng.randint(-1000, 1000)
    high = low + rng.choice((0, 1, 9, 250, 12345))
    if high > low + 1 and rng.random() < 0.3:
        return {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": high}
    return {"type": "integer", "minimum": low, "maximum": high}


def _number(rng: random.Random, _: int) -> Schema:
    low = round(rng.uniform(-50, 50), rng.randint(0, 3))
    return {"type": "number", "minimum": low, "maximum": round(low + rng.choice((0.5, 1.0, 37.25)), 3)}


def _string(rng: random.Random, _: int) -> Schema:
    least = rng.randint(0, 6)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 9)}


def _pattern(rng: random.Random, _: int) -> Schema:
    return {"type": "string", "pattern": rng.choice(PATTERNS)}


def _format(rng: random.Random, _: int) -> Schema:
    return {"type": "string", "format": rng.choice(FORMATS)}


def _enum(rng: random.Random, _: int) -> Schema:
    values = (0, -1, 2.5, True, None, "", "tea", "咖啡", 'a "b"\n', "\\", [1, "x"], {"k": 1})
    return {"enum": rng.sample(values, rng.randint(1, 6))}


def _constant(rng: random.Random, _: int) -> Schema:
    return {"const": rng.choice(("v1", 3, None, ["a"], {"kind": "x"}))}


def _simple(rng: random.Random, _: int) -> Schema:
    return {"type": rng.choice(("boolean", "null", ["boolean", "null"]))}


def _reference(rng: random.Random, _: int) -> Schema:
    return {"$ref": f"#/$defs/{rng.choice(('point', 'chain'))}"}


def random_expressions(count: int, seed: int) -> list[str]:
    """Expressions in the syntax that Rust and Python share."""
    rng = random.Random(seed)
    return [_sequence(rng, 3) + (_atom(rng, 1) + rng.choice("*+")) * (rng.random() < 0.2) for _ in range(count)]


def _sequence(rng: random.Random, depth: int) -> str:
    return "".join(_repeated(rng, depth) for _ in range(rng.randint(1, 4)))


def _repeated(rng: random.Random, depth: int) -> str:
    least = rng.randint(0, 3)
    repetition = rng.choice(("", "", "", "?", f"{{{least + 1}}}", f"{{{least},{least + 2}}}"))
    return _atom(rng, depth) + repetition


def _atom(rng: random.Random, depth: int) -> str:
    if depth and rng.random() < 0.35:
        inner = "|".join(_sequence(rng, depth - 1) for _ in range(rng.randint(1, 3)))
        return f"({'?:' if rng.random() < 0.5 else ''}{inner})"
    literals = "".join(rng.sample("abcXYZ019 _-.+é日本#@/", rng.randint(1, 3)))
    # \w is left out: Rust and Python disagree about combining marks.
    classes = ("[a-z]", "[A-Z0-9]", r"\d", "[^0-9]", ".", r"[\u4e00-\u9fa5]", "[a-c_.]", r"\s")
    return rng.choice((f"(?:{re.escape(literals)})", rng.choice(classes)))
