"""From a conversation to token ids: templates of every habit, and what a prompt may not be."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import msgspec
import pytest

from duet.errors import ContextTooLong, InvalidRequest
from engine.types import GenerationRequest, Message, Part
from engine.worker.model import Loaded
from engine.worker.prompts.template import DEFAULT_CONTEXT_TOKENS, answer_budget, ignored_fields, render
from tests.mlx.conftest import ask, picture, words
from tests.mlx.kv import KvDriver

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
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
    [
        (None, "model"),
        ("{{ raise_exception('I take nothing') }}", "model"),
        ("{% broken", "model"),
        (
            "{% for m in messages %}{% if 'hello' in m.content %}{{ 1 // 0 }}{% endif %}{{ m.content }}{% endfor %}",
            "messages",
        ),
        (
            "{% for m in messages %}{% if 'hello' in m.content %}{{ raise_exception('no hello') }}{% endif %}{{ m.content }}"
            "{% endfor %}",
            "messages",
        ),
    ],
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
        (10, 91, 100, 90),
        (10, 32_000, 100, 90),
        (99, 10**9, 100, 1),
    ],
)
def test_an_answer_may_fill_the_context_and_no_more(
    prompt: int, wanted: int | None, context: int | None, expected: int
) -> None:
    assert answer_budget(prompt, wanted, context) == expected


@pytest.mark.parametrize(("prompt", "wanted"), [(100, None), (100, 1), (321, 5)])
def test_a_prompt_that_fills_the_context_is_refused_with_the_numbers(prompt: int, wanted: int | None) -> None:
    with pytest.raises(ContextTooLong, match="100") as caught:
        answer_budget(prompt, wanted, 100)
    assert caught.value.param == "messages"
    assert str(prompt) in caught.value.message


def test_the_error_of_an_option_names_the_options(model: Callable[..., Loaded]) -> None:
    template = "{% if mood == 'bad' %}{{ raise_exception('bad mood') }}{% endif %}" + PLAIN
    loaded = with_template(model("plain"), template)
    assert render(loaded, msgspec.structs.replace(ask("a", "hello"), template_options={"mood": "good"}))
    with pytest.raises(InvalidRequest, match="bad mood") as caught:
        render(loaded, msgspec.structs.replace(ask("a", "hello"), template_options={"mood": "bad"}))
    assert caught.value.param == "chat_template_kwargs"


def test_a_name_that_the_template_shows_nowhere_is_said_to_be_ignored(model: Callable[..., Loaded]) -> None:
    named = msgspec.structs.replace(
        ask("a", "hello"), messages=(Message("user", (Part("text", text="hello"),), name="ann"),)
    )
    shows = with_template(model("plain"), "{% for m in messages %}{{ m.name }}: {{ m.content }}{% endfor %}")
    assert ignored_fields(model("plain"), named) == ("messages.name",)
    assert ignored_fields(shows, named) == ()
    assert ignored_fields(model("plain"), ask("a", "hello")) == ()


def test_what_was_computed_of_a_conversation_is_found_again_after_a_later_system_message(
    model: Callable[..., Loaded],
) -> None:
    """By a template that takes a system message only at the beginning."""
    strict = (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}"
        "{% endfor %}"
    )
    driver = KvDriver(with_template(model("plain"), strict + PLAIN), None)

    def said(name: str, *turns: tuple[str, str]) -> GenerationRequest:
        messages = tuple(Message(role, (Part("text", text=text),)) for role, text in turns)
        return msgspec.structs.replace(ask(name, "", tokens=2), messages=messages)

    first = (("system", words(400, 1)), ("user", words(400, 2)))
    driver.run([said("first", *first)])
    driver.run([said("second", *first, ("assistant", "yes"), ("system", "be brief"), ("user", "go on"))])
    assert driver.cached("second") > 700
