"""From a conversation to token ids: templates of every habit, and what a prompt may not be."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest

from duet.errors import ContextTooLong, InvalidRequest
from engine.types import GenerationRequest, Message, Part
from engine.worker.model import Loaded
from engine.worker.prompts.template import DEFAULT_CONTEXT_TOKENS, answer_budget, render
from tests.mlx.conftest import ask, picture

PARTS_ONLY = (
    "{% for message in messages %}{{ message['role'] }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}\n"
    "{% endfor %}"
)


def with_template(loaded: Loaded, template: str | None) -> Loaded:
    tokenizer = copy.copy(loaded.tokenizer)
    tokenizer.chat_template = template
    return dataclasses.replace(loaded, processor=tokenizer, tokenizer=tokenizer)


def test_a_template_gets_plain_text_and_its_options(model: Callable[..., Loaded]) -> None:
    template = (
        "{{ messages[0]['content'] }}|{{ enable_thinking }}|{{ messages[0]['name'] }}|{{ add_generation_prompt }}"
    )
    request = GenerationRequest(
        id="a",
        model="m",
        messages=(Message("user", (Part("text", "one "), Part("text", "two")), name="ann"),),
        template_options={"enable_thinking": False},
    )
    assert render(with_template(model("plain"), template), request) == "one two|False|ann|True"


def test_a_template_that_knows_only_parts_gets_parts(model: Callable[..., Loaded]) -> None:
    assert render(with_template(model("plain"), PARTS_ONLY), ask("a", "hello")) == "user:hello"


def test_pictures_stand_where_they_were_put(model: Callable[..., Loaded]) -> None:
    loaded = model("vision")
    parts = (Part("text", "before"), Part("image", image=picture(1)), Part("text", "after"))
    text = render(loaded, GenerationRequest(id="a", model="m", messages=(Message("user", parts),)))
    assert "before<|vision_start|><|image_pad|><|vision_end|>after" in text


def test_a_vision_model_without_a_template_gets_the_library_s_format(model: Callable[..., Loaded]) -> None:
    loaded = model("vision")
    processor = copy.copy(loaded.processor)
    processor.chat_template, processor.tokenizer = None, copy.copy(loaded.tokenizer)
    processor.tokenizer.chat_template = None
    bare = dataclasses.replace(loaded, processor=processor, tokenizer=processor.tokenizer)
    text = render(bare, ask("a", "hello", images=(picture(1),)))
    assert "<|image_pad|>" in text
    assert "hello" in text


@pytest.mark.parametrize(
    ("template", "param"),
    [(None, "model"), ("{{ raise_exception('roles must alternate') }}", "messages"), ("{% broken", "messages")],
)
def test_a_template_that_is_missing_or_refuses_is_a_clear_error(
    model: Callable[..., Loaded], template: str | None, param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        render(with_template(model("plain"), template), ask("a", "hello"))
    assert caught.value.param == param
    assert "template" in caught.value.message


def test_a_picture_for_a_text_model_is_refused_by_its_name(model: Callable[..., Loaded]) -> None:
    with pytest.raises(InvalidRequest, match="m cannot see images") as caught:
        render(model("plain"), ask("a", "x", images=(picture(1),)))
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    ("prompt", "wanted", "context", "expected"),
    [
        (10, None, 100, 90),
        (10, 90, 100, 90),
        (99, None, 100, 1),
        (1, 5, None, 5),
        (1, None, None, DEFAULT_CONTEXT_TOKENS - 1),
    ],
)
def test_an_answer_may_fill_the_context_and_no_more(
    prompt: int, wanted: int | None, context: int | None, expected: int
) -> None:
    assert answer_budget(prompt, wanted, context) == expected


@pytest.mark.parametrize(
    ("prompt", "wanted", "param"), [(100, None, "messages"), (100, 1, "messages"), (10, 91, "max_tokens")]
)
def test_what_exceeds_the_context_is_refused_with_the_numbers(prompt: int, wanted: int | None, param: str) -> None:
    with pytest.raises(ContextTooLong, match="100") as caught:
        answer_budget(prompt, wanted, 100)
    assert caught.value.param == param
    assert str(prompt) in caught.value.message
