"""Bodies of the engine's JSON endpoints: null is unset in every field, every list and text has a bound, and no value of any type
makes more of them than a refusal that names the field."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from duet.errors import ContextTooLong, InvalidRequest
from duet.http.errors import explain_validation
from engine.api.dialects.chat import requests as chat_requests
from engine.api.dialects.chat.schema import (
    MAX_MESSAGES,
    MAX_NAME_CHARACTERS,
    MAX_PARTS,
    MAX_TEMPLATE_OPTION_DEPTH,
    ChatCompletionRequest,
)
from engine.api.dialects.chat.schema import ignored_fields as chat_ignored
from engine.api.dialects.completions import requests as completion_requests
from engine.api.dialects.completions.schema import CompletionRequest
from engine.api.dialects.completions.schema import ignored_fields as completion_ignored
from engine.api.modalities.embeddings import EmbeddingsBody
from engine.api.shared.caller import Caller
from engine.api.shared.fields import Lenient
from engine.api.shared.generation import MAX_BIASES, MAX_CHOICES_A_CALL, MAX_STOP_CHARACTERS
from engine.api.shared.length import MAX_TOKEN_CHARACTERS, check_length
from engine.types import GenerationRequest, ModelInfo, Part

CALLER = Caller("tenant", "normal", None)
MODEL = ModelInfo(id="m", context=2048)
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
SAMPLING: dict[str, Any] = {
    "model": "m", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 5, "temperature": 0.5, "top_p": 0.5,
    "top_k": 5, "min_p": 0.1, "seed": 1, "presence_penalty": 0.1, "frequency_penalty": 0.1, "repetition_penalty": 1.1,
    "logit_bias": {"1": 1.0}, "n": 2, "stop": ["x"], "store": False, "stop_on_repetition": True, "priority": "batch",
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
    "structured_outputs": {"json": SCHEMA, "regex": "a", "choice": ["a"], "grammar": "start: /a/", "json_object": True,
                           "structural_tag": ""},
    "guided_json": SCHEMA, "guided_regex": "a", "guided_choice": ["a"], "guided_grammar": "start: /a/",
}  # fmt: skip
CHAT: dict[str, Any] = {
    **SAMPLING,
    "messages": [
        {"role": "user", "name": "ann", "content": [
            {"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:,x", "detail": "low"}}]},
        {"role": "system", "content": "y"},
    ],
    "max_completion_tokens": 5, "logprobs": True, "top_logprobs": 2, "enable_thinking": True,
    "chat_template_kwargs": {"mood": "good"}, "tools": [], "tool_choice": "auto", "functions": [], "function_call": "none",
    "modalities": ["text"], "audio": {}, "prediction": {}, "web_search_options": {},
}  # fmt: skip
COMPLETION: dict[str, Any] = {
    **SAMPLING,
    "prompt": ["x", "y"], "echo": False, "logprobs": 1, "best_of": 2, "suffix": "", "add_special_tokens": True,
}  # fmt: skip
EMBEDDING: dict[str, Any] = {"model": "m", "input": ["x"], "encoding_format": "float", "dimensions": 8}
BODIES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "chat": (ChatCompletionRequest, CHAT),
    "completions": (CompletionRequest, COMPLETION),
    "embeddings": (EmbeddingsBody, EMBEDDING),
}


def outcome(model: type[BaseModel], body: Any) -> Any:
    """What a body becomes, or the field that its refusal names."""
    try:
        return model.model_validate(body).model_dump()
    except ValidationError as error:
        said = explain_validation(error.errors(include_url=False, include_context=False, include_input=False))
        return "refused", said.param


FREE = {"schema", "json", "guided_json", "logit_bias", "chat_template_kwargs"}
"""Fields whose inside is the client's own."""


def models_in(annotation: Any) -> Iterator[type[Lenient]]:
    """The schemas that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, Lenient):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models_in(field.annotation)
    for inner in get_args(annotation):
        yield from models_in(inner)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


@pytest.mark.parametrize("name", BODIES)
def test_null_is_as_good_as_nothing_in_every_field(name: str) -> None:
    model, sample = BODIES[name]
    paths = [path for path in places(sample) if isinstance(path[-1], str) and not FREE & set(path[:-1])]
    known = {
        (inner, field.alias or field_name)
        for inner in models_in(model)
        for field_name, field in inner.model_fields.items()
    }
    assert {field for _, field in known} == {path[-1] for path in paths}, "the sample has every field of every schema"
    for path in paths:
        nulled, without = copy.deepcopy(sample), copy.deepcopy(sample)
        place, bare = nulled, without
        for part in path[:-1]:
            place, bare = place[part], bare[part]
        place[path[-1]] = None
        del bare[path[-1]]
        assert outcome(model, nulled) == outcome(model, without), path


@pytest.mark.parametrize("name", BODIES)
def test_all_that_may_be_unset_may_be_null_at_once(name: str) -> None:
    model, sample = BODIES[name]
    needed = {key for key, field in model.model_fields.items() if field.is_required()}
    body = {key: sample[key] if key in needed else None for key in sample}
    assert outcome(model, body) == outcome(model, {key: sample[key] for key in needed})
    assert isinstance(outcome(model, body), dict)


def chat(**changes: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "x"}], **changes}


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if _ % 2 else {"a": value}
    return value


TEXT_PART = {"type": "text", "text": "x"}
TOO_MUCH = {
    "messages": (chat(messages=[{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1)), "messages"),
    "100,000 messages": (chat(messages=[{"role": "user", "content": "x"}] * 100_000), "messages"),
    "100,000 messages of no shape": (chat(messages=[[]] * 100_000), "messages"),
    "parts of a message": (chat(messages=[{"role": "user", "content": [TEXT_PART] * (MAX_PARTS + 1)}]), "messages"),
    "100,000 parts": (chat(messages=[{"role": "user", "content": [TEXT_PART] * 100_000}]), "messages"),
    "100,000 wrong parts": (chat(messages=[{"role": "user", "content": [7] * 100_000}]), "messages"),
    "parts of all messages": (chat(messages=[{"role": "user", "content": [TEXT_PART] * 101}] * 100), "messages"),
    "a name": (chat(messages=[{"role": "user", "content": "x", "name": "n" * (MAX_NAME_CHARACTERS + 1)}]), "messages[0].name"),
    "stops": (chat(stop=["x"] * 100_000), "stop"),
    "a stop": (chat(stop=["x" * (MAX_STOP_CHARACTERS + 1)]), "stop"),
    "biases": (chat(logit_bias={str(i): 0.5 for i in range(MAX_BIASES + 1)}), "logit_bias"),
    "300,000 biases": (chat(logit_bias={str(i): 0.5 for i in range(300_000)}), "logit_bias"),
    "depth of options": (chat(chat_template_kwargs={"a": deep(MAX_TEMPLATE_OPTION_DEPTH)}), "chat_template_kwargs"),
    "500 levels of options": (chat(chat_template_kwargs={"a": deep(500)}), "chat_template_kwargs"),
    "width of options": (chat(chat_template_kwargs={"a": deep(900), "b": [[]] * 10_000}), "chat_template_kwargs"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "param"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_too_much_of_anything_is_refused_at_once_by_its_name(body: Any, param: str) -> None:
    begun = time.process_time()
    assert outcome(ChatCompletionRequest, body) == ("refused", param)
    assert time.process_time() - begun < 1


def test_as_much_as_the_bounds_allow_is_taken() -> None:
    many = [{"role": "user", "content": [TEXT_PART]}] * MAX_MESSAGES
    body = chat(
        messages=many,
        stop=["x" * MAX_STOP_CHARACTERS],
        chat_template_kwargs=deep(MAX_TEMPLATE_OPTION_DEPTH - 1),
        logit_bias={str(i): 0.5 for i in range(MAX_BIASES)},
    )
    assert isinstance(outcome(ChatCompletionRequest, body), dict)


async def test_options_of_the_template_are_bounded_in_bytes() -> None:
    with pytest.raises(InvalidRequest) as caught:
        await requests_of(
            "chat", ChatCompletionRequest.model_validate(chat(chat_template_kwargs={"a": "x" * (1 << 20)}))
        )
    assert caught.value.param == "chat_template_kwargs"


async def test_prompts_and_choices_together_have_a_bound() -> None:
    body = {"model": "m", "prompt": ["x"] * 64, "n": MAX_CHOICES_A_CALL // 64}
    assert len(await requests_of("completions", CompletionRequest.model_validate(body))) == MAX_CHOICES_A_CALL
    with pytest.raises(InvalidRequest, match="64 prompts with 16 choices each are 1024") as caught:
        await requests_of("completions", CompletionRequest.model_validate({**body, "n": 16}))
    assert caught.value.param == "n"


@pytest.mark.parametrize("prompt", ["x" * (2049 * MAX_TOKEN_CHARACTERS), tuple([1] * 2049)])
def test_a_prompt_that_cannot_fit_is_refused_without_a_look_at_its_words(prompt: Any) -> None:
    with pytest.raises(ContextTooLong, match=r"2049 tokens.*2048"):
        check_length(prompt, MODEL, "prompt")
    check_length(prompt[: 2048 * (MAX_TOKEN_CHARACTERS if isinstance(prompt, str) else 1)], MODEL, "prompt")
    check_length(prompt, ModelInfo(id="unknown"), "prompt")


EMPTY: list[tuple[str, Any, Any]] = [
    ("guided_grammar", "", None), ("guided_grammar", " ", "guided_grammar"), ("guided_grammar", "\n\t", "guided_grammar"),
    ("guided_regex", "", None), ("guided_json", "", None), ("guided_choice", [], "guided_choice"),
    ("structured_outputs", {"grammar": ""}, None), ("structured_outputs", {"grammar": " "}, "structured_outputs.grammar"),
    ("structured_outputs", {"regex": ""}, None), ("structured_outputs", {"json": ""}, None), ("structured_outputs", {}, None),
    ("structured_outputs", {"json": None, "regex": None, "choice": None, "grammar": None, "json_object": None}, None),
    ("response_format", {}, None), ("response_format", {"type": None, "json_schema": None}, None),
    ("response_format", {"type": None, "json_schema": {"name": "n", "schema": {}}}, "response_format"),
    ("response_format", {"type": "json_schema", "json_schema": None}, "response_format"),
    ("stream_options", {}, None), ("stream_options", {"include_usage": False}, None), ("modalities", [], None),
    ("tools", [], None), ("stop", [], None), ("logit_bias", {}, None), ("chat_template_kwargs", {}, None),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "param"), EMPTY, ids=[f"{case[0]} {case[1]!r}" for case in EMPTY])
async def test_what_is_empty_asks_for_nothing_or_is_refused_by_name(field: str, value: Any, param: str | None) -> None:
    try:
        (asked,) = await requests_of("chat", ChatCompletionRequest.model_validate(chat(**{field: value})))
    except (ValidationError, InvalidRequest) as error:
        found = explain_validation(error.errors()) if isinstance(error, ValidationError) else error
        assert found.param == param
    else:
        assert param is None
        assert asked.structure is None


class Shown:
    """Pictures as the decoding child would measure them."""

    async def parts(self, asked: Any, deadline: Any) -> list[Part]:
        return [Part("image", image=b"x") for _ in asked]


async def requests_of(name: str, body: Any) -> list[GenerationRequest]:
    if name == "chat":
        return await chat_requests.to_requests(body, MODEL, CALLER, Shown())  # type: ignore[arg-type]
    return completion_requests.to_requests(body, MODEL, CALLER)


values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.integers(-3, 3), st.floats(), st.text(max_size=8),
        st.sampled_from(["", " ", "auto", "text", "\ud800", "0", "user", "1e400", "x" * 5000, 10**30, -(1 << 63)]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=5) | st.sampled_from(["type", "text", "url", "role", "$ref"]), inner, max_size=4),
    ),
    max_leaves=8,
)  # fmt: skip


@pytest.mark.parametrize("name", ["chat", "completions"])
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
async def test_no_value_of_any_type_in_any_place_is_a_fault_of_ours(name: str, data: st.DataObject) -> None:
    model, sample = BODIES[name]
    forms = {"response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"}
    kept = data.draw(st.sampled_from([*sorted(forms), None]))
    body = copy.deepcopy({key: value for key, value in sample.items() if key not in forms - {kept}})
    for path in data.draw(st.lists(st.sampled_from(list(places(body))), min_size=1, max_size=3)):
        place: Any = body
        try:
            for part in path[:-1]:
                place = place[part]
            place[path[-1]] = data.draw(values)
        except (KeyError, IndexError, TypeError):
            pass  # an earlier change took this place away
    try:
        checked = model.model_validate(body)
        ignored = chat_ignored if name == "chat" else completion_ignored
        assert isinstance(ignored(checked), list)  # type: ignore[arg-type]
        asked = await requests_of(name, checked)
    except ValidationError as error:
        assert explain_validation(error.errors(include_url=False, include_context=False)).message
    except InvalidRequest as error:
        assert error.param
    else:
        assert [msgspec.msgpack.decode(msgspec.msgpack.encode(one), type=GenerationRequest) for one in asked] == asked
