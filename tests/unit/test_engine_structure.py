"""What a request asks its answer's form to be, and forms without an end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duet.errors import InvalidRequest
from engine.api.dialects.chat.schema import ChatCompletionRequest, ignored_fields
from engine.api.shared.structure import structure_of
from engine.types import Structure
from engine.worker.forms.endless import endless_grammar, endless_schema

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"enum": ["é"]}}}
OBJECT = Structure("json_schema", '{"type": "object"}', "response_format")


def request(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    )


def wrapped(schema: Any, **more: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, **more}}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"response_format": None, "guided_json": None, "structured_outputs": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"structured_outputs": {}}, None),
        ({"structured_outputs": {"json_object": False}}, None),
        ({"response_format": {"type": "json_object"}}, OBJECT),
        ({"response_format": {"type": "text"}, "guided_regex": "a"}, Structure("regex", "a", "guided_regex")),
        ({"guided_choice": ["a", "é"]}, Structure("choice", '["a", "é"]', "guided_choice")),
        ({"guided_grammar": "start: A"}, Structure("grammar", "start: A", "guided_grammar")),
        ({"structured_outputs": {"regex": "a"}}, Structure("regex", "a", "structured_outputs.regex")),
        ({"structured_outputs": {"choice": ["a"]}}, Structure("choice", '["a"]', "structured_outputs.choice")),
        ({"structured_outputs": {"grammar": "x"}}, Structure("grammar", "x", "structured_outputs.grammar")),
    ],
)
def test_what_is_asked(fields: dict[str, Any], expected: Structure | None) -> None:
    assert structure_of(request(**fields)) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (wrapped(SCHEMA), "response_format"),
        (wrapped(SCHEMA, strict=True), "response_format"),
        (wrapped(SCHEMA, strict=False), "response_format"),
        ({"guided_json": SCHEMA}, "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, "guided_json"),
        ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "structured_outputs.json"),
    ],
)
def test_a_schema_keeps_the_order_of_its_properties(fields: dict[str, Any], param: str) -> None:
    structure = structure_of(request(**fields))
    assert structure == Structure("json_schema", json.dumps(SCHEMA, ensure_ascii=False), param)


FORMS: dict[str, dict[str, Any]] = {
    "response_format": {"type": "json_object"},
    "structured_outputs.json": {"json": {}},
    "structured_outputs.json_object": {"json_object": True},
    "guided_json": {},
    "guided_regex": {},
    "guided_choice": {},
    "guided_grammar": {},
}  # fmt: skip
VALUES = {"guided_json": {}, "guided_regex": "a", "guided_choice": ["a"], "guided_grammar": 'start: "a"'}


@given(names=st.lists(st.sampled_from(list(FORMS)), min_size=2, max_size=7, unique=True))
def test_two_forms_are_one_too_many(names: list[str]) -> None:
    fields: dict[str, Any] = {}
    for name in names:
        field = name.partition(".")[0]
        fields[field] = {**fields.get(field, {}), **FORMS[name]} if name not in VALUES else VALUES[name]
    with pytest.raises(InvalidRequest) as caught:
        structure_of(request(**fields))
    assert caught.value.param in names
    assert all(name in names for name in caught.value.message.split(" both")[0].split(" and "))


def test_what_has_no_effect_is_reported() -> None:
    fields = wrapped(SCHEMA, description="d") | {"guided_decoding_backend": "x"}
    assert ignored_fields(request(**fields)) == ["guided_decoding_backend", "response_format.json_schema.description"]
    assert ignored_fields(request(structured_outputs={"regex": "a", "backend": "x"})) == ["structured_outputs.backend"]
    assert ignored_fields(request(**wrapped(SCHEMA, strict=True))) == []


# Without an end ---------------------------------------------------------------------------------------------------------


def node(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


SELF = {"$ref": "#"}
ENDLESS: list[dict[str, Any]] = [
    SELF,
    node(["a"], a=SELF),
    node(["a"], a={"anyOf": [SELF, {"$ref": "#/properties/a"}]}),
    node(["a"], a={"allOf": [{"type": "object"}, SELF]}),
    {"type": "array", "items": SELF, "minItems": 1},
    {"type": "array", "prefixItems": [{"type": "null"}, SELF], "minItems": 2},
    {"$ref": "#/$defs/a", "$defs": {"a": node(["b"], b={"$ref": "#/$defs/b"}), "b": node(["a"], a={"$ref": "#/$defs/a"})}},
    {"$ref": "#/$defs/x~1y", "$defs": {"x/y": node(["b"], b={"$ref": "#/$defs/x~1y"})}},
]  # fmt: skip
ENDING: list[dict[str, Any]] = [
    {},
    node([], a=SELF),
    node(["a"], a={"type": "integer"}, b=SELF),
    node(["a"], a={"anyOf": [SELF, {"type": "null"}]}),
    {"properties": {"a": SELF}, "required": ["a"]},
    {"type": ["object", "null"], "properties": {"a": SELF}, "required": ["a"]},
    {"type": "array", "items": SELF},
    {"type": "array", "prefixItems": [{"type": "null"}, SELF], "minItems": 1},
    {**node(["a"], a=SELF), "enum": [{"a": 1}]},
    {"$ref": "#/$defs/a", "$defs": {"a": node(["b"], b={"$ref": "#/$defs/b"}), "b": {"type": "array", "items": SELF}}},
    {"$ref": "#name"},
    {"$ref": "#/nowhere"},
    {"$ref": "http://example.com"},
]  # fmt: skip


def test_schemas_that_need_themselves_have_no_end() -> None:
    assert [schema for schema in ENDLESS if not endless_schema(schema)] == []
    assert [schema for schema in ENDING if endless_schema(schema)] == []


def test_a_long_chain_of_references_is_judged_in_time() -> None:
    chain = {f"r{i}": node(["next"], next={"$ref": f"#/$defs/r{i + 1}"}) for i in range(1000)}
    assert not endless_schema({"$ref": "#/$defs/r0", "$defs": {**chain, "r1000": {"type": "null"}}})
    assert endless_schema({"$ref": "#/$defs/r0", "$defs": {**chain, "r1000": {"$ref": "#/$defs/r0"}}})


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=4),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["type", "properties", "required", "anyOf", "allOf", "items", "minItems", "$ref", "a"]),
                        inner | st.sampled_from(["#", "#/a", "object", "array"]), max_size=4), max_leaves=12))  # fmt: skip
def test_whatever_a_schema_holds_it_is_judged(schema: Any) -> None:
    assert endless_schema({"a": schema, "$ref": "#/a"}) in (True, False)


def erased(lark: str) -> str | None:
    """The grammar that `endless_grammar` asks about; None if it does not ask."""
    asked: list[str] = []

    def ask(text: str) -> bool:
        asked.append(text)
        return True

    assert not endless_grammar(lark, ask)
    return asked[0] if asked else None


@pytest.mark.parametrize(
    ("lark", "expected"),
    [
        ('start: "a" start', 'start: "" start'),
        (r'start: "a\"b" other | /x\/y/i  // "c"', 'start: "" other | ""  '),
        ('start: "a".."z" NAME # x\nNAME: /a/', 'start: "" "" \nNAME: ""'),
        ("start: <|tool|> WORD+ (A | b)?\n%ignore WS\nA.2: /x/ & ~B", 'start: "" ""+ ("" | b)?\nA.2: "" & ~""'),
        ('%llguidance {}\nstart: "a"', None),
        ('start: a[stop="x"]\na: "b"', None),
        ('start: a::0\na::_: "b"', None),
        ("start: @other", None),
    ],
)
def test_terminals_of_a_grammar_are_erased(lark: str, expected: str | None) -> None:
    assert erased(lark) == expected


def test_a_grammar_is_endless_only_if_that_is_certain() -> None:
    assert endless_grammar('start: "a" start', lambda text: False)
    assert not endless_grammar('start: "a" start', lambda text: None)
