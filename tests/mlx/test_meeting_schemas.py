"""What a meeting asks for: its schemas take every way in which reviewers write their answers, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from llguidance import LLTokenizer

from engine.types import Finished, Structure
from engine.worker.forms.grammar import compile_structure
from engine.worker.forms.vocabulary import wrapped_tokenizer
from engine.worker.model import Loaded
from pipelines.meeting.prompts import json_answer
from pipelines.meeting.review.prompts import read_review, review_schema
from pipelines.meeting.summarize import MAX_ITEMS, MAX_TEXT, RawItem, summary_schema
from tests.mlx.conftest import Driver, ask

WINDOW = [(f"s{i:04d}", "some text") for i in range(1, 21)]
EDIT = {"from": "知识争流", "to": '知识"蒸馏"'}
REVIEWS = [
    {"segments": []},
    {"segments": [{"id": "s0001", "edits": [EDIT]}]},
    {"segments": [{"id": "s0002", "edits": []}, {"id": "s0020", "edits": [EDIT, EDIT]}]},
]
POINT = {"kind": "point", "text": "一句话。", "segment_ids": ["s0001", "s0002"], "quote": "words\n"}
SHORT = {"kind": "action", "segment_ids": ["s0020"], "quote": "我来做"}
FIRST = {"segment_ids": ["s0001"], "kind": "question", "quote": "谁来做？"}
SUMMARIES = [
    {"overview": "", "items": []},
    {"overview": "Two.", "items": [POINT]},
    {"overview": "二", "items": [SHORT, POINT, FIRST]},
]
WAYS: list[Callable[[Any], str]] = [
    json.dumps,
    lambda value: json.dumps(value, ensure_ascii=False),
    lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
    lambda value: json.dumps(value, ensure_ascii=False, indent=2),
    lambda value: json.dumps(value, indent="\t"),
]
WRONG = [
    (review_schema(WINDOW), {"segments": [{"id": "s0021", "edits": []}]}),
    (review_schema(WINDOW), {"segments": [{"id": "s0001"}]}),
    (review_schema(WINDOW[:1]), {"segments": [{"id": "s0001", "edits": []}] * 2}),
    (summary_schema(["s0001"]), {"overview": "x"}),
    (summary_schema(["s0001"]), {"overview": "x", "items": [SHORT]}),
    (summary_schema(["s0020"]), {"overview": "x", "items": [{**SHORT, "kind": "idea"}]}),
    (summary_schema(["s0020"]), {"overview": "x", "items": [SHORT] * 3}),
    (summary_schema([name for name, _ in WINDOW]), {"overview": "x", "items": [SHORT] * (MAX_ITEMS + 1)}),
    (summary_schema(["s0020"]), {"overview": "x", "items": [{**SHORT, "segment_ids": ["s0020"] * 2}]}),
    (summary_schema(["s0020"], said=20), {"overview": "x", "items": [{**SHORT, "quote": "x" * 21}]}),
    (summary_schema(["s0001", "s0002"]), {"overview": "x", "items": [{**POINT, "text": "x" * (MAX_TEXT + 1)}]}),
    (review_schema([("s0001", "text")]), {"segments": [{"id": "s0001", "edits": [{"from": "longer", "to": ""}]}]}),
    (review_schema([("s0001", "text")]), {"segments": [{"id": "s0001", "edits": [{"from": "t", "to": "x"}] * 17}]}),
]


@pytest.fixture(scope="module")
def tokenizer(model: Callable[..., Loaded]) -> LLTokenizer:
    return wrapped_tokenizer(model("plain"))


def accepts(tokenizer: LLTokenizer, schema: dict[str, Any], text: str) -> bool:
    matcher, problem = compile_structure(tokenizer, Structure("json_schema", json.dumps(schema), "response_format"))
    assert matcher is not None, problem
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_writing_an_answer_is_taken(tokenizer: LLTokenizer, way: Callable[[Any], str]) -> None:
    names = [name for name, _ in WINDOW]
    assert [value for value in REVIEWS if not accepts(tokenizer, review_schema(WINDOW), way(value))] == []
    assert [value for value in SUMMARIES if not accepts(tokenizer, summary_schema(names), way(value))] == []


@pytest.mark.parametrize(("schema", "value"), WRONG)
def test_nothing_else_is(tokenizer: LLTokenizer, schema: dict[str, Any], value: Any) -> None:
    assert not accepts(tokenizer, schema, json.dumps(value))


def test_whatever_a_model_says_in_the_form_can_be_read(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("plain"))
    forms = [review_schema(WINDOW), summary_schema(["s0001", "s0002"])]
    bias = {ord(char): 8.0 for char in '"}]'} | {258: 8.0}
    requests = [
        ask(f"{i}", "x", tokens=1500, temperature=2.0, seed=i, logit_bias=bias,
            structure=Structure("json_schema", json.dumps(forms[i % 2]), "response_format"))
        for i in range(8)
    ]  # fmt: skip
    driver.run(requests)
    for i in range(8):
        assert driver.of(f"{i}", Finished)[0].reason == "stop"
        answer = driver.text(f"{i}")
        if i % 2:
            msgspec.convert(json_answer(answer).whole("items"), list[RawItem])
        else:
            read_review(answer, WINDOW)
