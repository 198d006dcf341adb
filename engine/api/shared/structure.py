"""The form that an answer must have: OpenAI's `response_format`, and the names that vLLM's users send
(`guided_*`, https://docs.vllm.ai/en/v0.10.1/features/structured_outputs.html, and `structured_outputs`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Protocol

from pydantic import BeforeValidator, Field, StrictBool, StrictStr, model_validator

from duet.errors import InvalidRequest
from engine.api.shared.fields import Lenient, Refused, empty_is_unset
from engine.types import Structure

MAX_STRUCTURE_BYTES = 1 << 16
"""The longest text of a schema, regular expression or grammar. Compiling one of that size takes up to a second."""


def _parsed(value: Any) -> Any:
    """vLLM's users may send a schema as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


Schema = Annotated[dict[str, Any], BeforeValidator(_parsed)]
FormText = Annotated[StrictStr | None, BeforeValidator(empty_is_unset)]
OptionalSchema = Annotated[Schema | None, BeforeValidator(empty_is_unset)]
Choices = Annotated[list[StrictStr], Field(min_length=1)]


class JsonSchema(Lenient):
    """OpenAI's object around a schema. Answers always follow the schema, `strict` or not."""

    name: StrictStr = Field(min_length=1, max_length=64)
    schema_: Schema = Field(alias="schema")
    strict: StrictBool | None = None


class ResponseFormat(Lenient):
    type: Literal["text", "json_object", "json_schema"] | None = None
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_asked(self) -> ResponseFormat:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("json_schema and type json_schema go together")
        return self


class StructuredOutputs(Lenient):
    """vLLM's newer names. One of these fields is set."""

    json_: OptionalSchema = Field(None, alias="json")
    regex: FormText = None
    choice: Choices | None = None
    grammar: FormText = None
    json_object: StrictBool | None = None
    structural_tag: Refused = None


class AsksForStructure(Protocol):
    """The fields of a request that ask for a form."""

    response_format: ResponseFormat | None
    structured_outputs: StructuredOutputs | None
    guided_json: dict[str, Any] | None
    guided_regex: str | None
    guided_choice: list[str] | None
    guided_grammar: str | None


def structure_of(body: AsksForStructure) -> Structure | None:
    """What `body` asks for. Raises `InvalidRequest` for two forms at once, and for one that is too long or is not JSON."""
    asked = list(_asked(body))
    if len(asked) > 1:
        first, second, *_ = (structure.param for structure in asked)
        raise InvalidRequest(f"{first} and {second} both give the answer's form: send one of them", param=second)
    structure = next(iter(asked), None)
    if structure is not None and len(structure.text.encode()) > MAX_STRUCTURE_BYTES:
        raise InvalidRequest(
            f"{structure.param} is longer than {MAX_STRUCTURE_BYTES:,} bytes of JSON or text", param=structure.param
        )
    return structure


def _asked(body: AsksForStructure) -> Iterator[Structure]:
    form = body.response_format
    if form is not None and form.type == "json_object":
        yield _any_object("response_format")
    if form is not None and form.json_schema is not None:
        yield _schema(form.json_schema.schema_, "response_format")
    if (newer := body.structured_outputs) is not None:
        place = "structured_outputs."
        yield from _four(newer.json_, newer.regex, newer.choice, newer.grammar, place)
        if newer.json_object:
            yield _any_object(f"{place}json_object")
    yield from _four(body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar, "guided_")


def _four(
    schema: dict[str, Any] | None, regex: str | None, choice: list[str] | None, grammar: str | None, prefix: str
) -> Iterator[Structure]:
    if schema is not None:
        yield _schema(schema, f"{prefix}json")
    if regex is not None:
        yield Structure("regex", _text(regex, f"{prefix}regex"), f"{prefix}regex")
    if choice is not None:
        yield Structure("choice", _json(choice, f"{prefix}choice"), f"{prefix}choice")
    if grammar is not None:
        if not grammar.strip():
            raise InvalidRequest(
                f"{prefix}grammar has no rule: leave it out, or send a grammar", param=f"{prefix}grammar"
            )
        yield Structure("grammar", _text(grammar, f"{prefix}grammar"), f"{prefix}grammar")


def _any_object(param: str) -> Structure:
    return Structure("json_schema", '{"type": "object"}', param)


def _schema(schema: dict[str, Any], param: str) -> Structure:
    return Structure("json_schema", _json(schema, param), param)


def _json(value: Any, param: str) -> str:
    """Keys keep their order, because an answer's properties come in it."""
    try:
        return _text(json.dumps(value, ensure_ascii=False, allow_nan=False), param)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{param} cannot be passed on: {error}", param=param) from error


def _text(text: str, param: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{param} holds half a surrogate pair, which is no character", param=param) from error
    return text
