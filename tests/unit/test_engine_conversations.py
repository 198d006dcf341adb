"""Conversations of every kind through templates of every habit: taken, whole, in order, and with the same beginning next time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.types import Message, Part
from engine.worker.prompts.conversation import Rules, rules_of, shaped

_PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
_TURNS = (
    "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEMPLATES = {
    "takes everything": _PLAIN,
    "system only at the beginning": (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
        "{{ raise_exception('System message must be at the beginning.') }}{% endif %}{% endfor %}" + _PLAIN
    ),
    "needs a user (Qwen 3.5)": (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
        "{{ raise_exception('System message must be at the beginning.') }}{% endif %}{% endfor %}"
        "{% if not messages | selectattr('role', 'equalto', 'user') | list %}"
        "{{ raise_exception('No user query found in messages.') }}{% endif %}" + _PLAIN
    ),
    "no system at all (Gemma 2)": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% set turns = messages %}" + _TURNS
    ),
    "system in the first turn (Gemma 3)": (
        "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\\n\\n' %}{% set turns = messages[1:] %}"
        "{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}{{ first if not turns }}"
        "{% for m in turns %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
        "<{{ m.role }}>{{ first if loop.first }}{{ m.content | trim }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    ),
    "turns behind one system (Mistral)": (
        "{% if messages[0].role == 'system' %}<system>{{ messages[0].content }}</>{% set turns = messages[1:] %}"
        "{% else %}{% set turns = messages %}{% endif %}" + _TURNS
    ),
    "drops later systems in silence": (
        "{% for m in messages %}{% if m.role != 'system' or loop.first %}<{{ m.role }}>{{ m.content }}</>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    ),
    "drops every system in silence": (
        "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}</>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    ),
    "the last one must be the user's": (
        "{% if messages[-1].role != 'user' %}{{ raise_exception('last role must be user') }}{% endif %}" + _PLAIN
    ),
    "content only as parts": (
        "{% for m in messages %}{% if m.content is string %}{{ raise_exception('parts') }}{% endif %}"
        "<{{ m.role }}>{% for p in m.content %}{{ p.text }}{% endfor %}</>{% endfor %}"
    ),
    "an error of its own": (
        "{% if messages[1:] | selectattr('role', 'equalto', 'system') | list %}{{ 1 // 0 }}{% endif %}" + _PLAIN
    ),
}


def _refuse(message: str) -> None:
    raise TemplateError(message)


@cache
def _compiled(template: str) -> object:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(template)


def rendered(template: str, messages: Sequence[Message], *, parts: bool, answer: bool = True) -> str:
    said = [
        {
            "role": message.role,
            "content": [{"type": "text", "text": part.text} for part in message.parts]
            if parts
            else "".join(part.text for part in message.parts),
        }
        for message in messages
    ]
    return str(_compiled(template).render(messages=said, add_generation_prompt=answer))  # type: ignore[attr-defined]


@cache
def rules(template: str) -> Rules:
    def attempt(messages: Sequence[Message], parts: bool) -> str | None:
        try:
            return rendered(template, messages, parts=parts)
        except Exception:  # noqa: BLE001 - as in the worker
            return None

    found = rules_of(attempt)
    assert found is not None
    return found


def prompt(template: str, messages: Sequence[Message], *, answer: bool = True) -> str:
    known = rules(template)
    return rendered(template, shaped(messages, known), parts=known.parts, answer=answer)


def said(role: str, *texts: str) -> Message:
    return Message(role, tuple(Part("text", text=text) for text in texts))


WORDS = [f"w{i}." for i in range(12)]
CONVERSATIONS = {
    "two systems": "ssu",
    "three systems, then more": "sssuau",
    "a system later": "suasu",
    "only later": "usu",
    "a system at the end": "uas",
    "a system behind every turn": "susasus",
    "only a system": "s",
    "two systems and nothing else": "ss",
    "a system and an answer": "sa",
    "the assistant first": "au",
    "the assistant first behind a system": "sau",
    "only the assistant": "a",
    "the assistant last": "ua",
    "users in a row": "uuu",
    "assistants in a row": "uaau",
    "all in rows": "ssuuaassuuaa",
}
ROLES = {"s": "system", "u": "user", "a": "assistant"}
name_of = pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)


@name_of
@pytest.mark.parametrize("roles", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_every_conversation_is_taken_with_all_its_texts_in_order(template: str, roles: str) -> None:
    texts = WORDS[: len(roles)]
    found = prompt(template, [said(ROLES[role], text) for role, text in zip(roles, texts, strict=True)])
    places = [found.find(text) for text in texts]
    assert -1 not in places, found
    assert places == sorted(places), found


messages = st.lists(
    st.builds(
        lambda role, text, parts: said(role, *(text[i::parts] for i in range(parts))),
        st.sampled_from(["system", "user", "assistant"]),
        st.sampled_from(["", " ", "one", "two words", "drei\n\nvier", "五"]),
        st.integers(1, 2),
    ),
    min_size=1,
    max_size=8,
)


@name_of
@settings(max_examples=40)
@given(conversation=messages, more=st.sampled_from(["user", "assistant", "system"]))
def test_the_next_turn_begins_with_the_same_prompt(template: str, conversation: list[Message], more: str) -> None:
    """So that the KV cache finds it. A conversation without a user has no prompt of its own where the template needs one."""
    conversation = [said("user", "begin"), *conversation] if conversation[0].role != "system" else conversation
    if all(message.role != "user" for message in conversation):
        conversation.append(said("user", "begin"))
    conversation[-1:] = [said(conversation[-1].role, "lastword")]
    before = prompt(template, conversation, answer=False)
    after = prompt(template, [*conversation, said(more, "a new turn")], answer=False)
    end = before.rfind("lastword") + len("lastword")
    assert before[:end] == after[:end]


@name_of
def test_what_a_template_takes_is_not_changed(template: str) -> None:
    ordinary = [said("user", "a"), said("assistant", "b"), said("user", "c")]
    assert shaped(ordinary, rules(template)) == tuple(ordinary)


def test_a_permissive_template_gets_every_conversation_as_it_came() -> None:
    for roles in CONVERSATIONS.values():
        given_ = [said(ROLES[role], text) for role, text in zip(roles, WORDS, strict=False)]
        assert shaped(given_, rules(TEMPLATES["takes everything"])) == tuple(given_)


def test_a_system_message_that_a_template_does_not_take_becomes_the_users_own_words() -> None:
    given_ = [said("system", "be brief"), said("system", "be kind"), said("user", "hello"), said("assistant", "hi")]
    later = [*given_, said("system", "be silly"), said("user", "go on")]
    gemma = prompt(TEMPLATES["no system at all (Gemma 2)"], later)
    assert gemma == "<user>be brief\n\nbe kind\n\nhello</><assistant>hi</><user>be silly\n\ngo on</><assistant>"
    mistral = prompt(TEMPLATES["turns behind one system (Mistral)"], later)
    assert mistral.startswith("<system>be brief\n\nbe kind</><user>hello</>")


def test_pictures_stay_in_their_places_when_messages_are_joined() -> None:
    picture = Part("image", image=b"x")
    one, two = (
        Message("user", (Part("text", text="see"), picture)),
        Message("user", (picture, Part("text", text="this"))),
    )
    (joined,) = shaped([one, two], Rules())
    assert joined.parts == (Part("text", text="see"), picture, picture, Part("text", text="this"))


def test_a_template_that_refuses_everything_has_no_rules() -> None:
    assert rules_of(lambda messages, parts: None) is None
