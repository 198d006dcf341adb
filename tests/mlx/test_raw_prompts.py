"""Raw prompts: the same tokens give the same answer, whichever way they came."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from engine.types import Accepted, Failed, Finished, GenerationRequest, TextDelta
from engine.worker.model import Loaded
from engine.worker.prompts import length
from engine.worker.prompts.length import tokens_beyond
from engine.worker.prompts.template import render
from tests.mlx.conftest import Driver, ask, words
from tests.mlx.kv import KvDriver

KINDS = ("plain", "hybrid", "windowed", "vision")


def raw(name: str, prompt: str | tuple[int, ...], *, echo: bool = False, special: bool = False) -> GenerationRequest:
    asked = ask(name, "x", tokens=12)
    return msgspec.structs.replace(asked, messages=(), prompt=prompt, echo=echo, add_special_tokens=special)


def rendered(loaded: Loaded, request: GenerationRequest) -> tuple[str, tuple[int, ...]]:
    text = render(loaded, request)
    return text, tuple(loaded.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rendered_conversation_gives_the_chats_answer_as_text_and_as_tokens(
    model: Callable[..., Loaded], kind: str
) -> None:
    loaded = model(kind)
    chat = ask("chat", words(60, 1), tokens=12)
    text, tokens = rendered(loaded, chat)
    found = Driver(loaded).run([chat, raw("text", text), raw("tokens", tokens)])
    assert found["text"] == found["chat"]
    assert found["tokens"] == found["chat"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_chat_computed_is_restored_for_the_same_prompt_in_the_raw(
    model: Callable[..., Loaded], kind: str
) -> None:
    loaded = model(kind)
    chat = ask("chat", words(600, 1), tokens=12)
    text, tokens = rendered(loaded, chat)
    driver = KvDriver(loaded, None)
    alone = driver.run([chat])["chat"]
    for name, prompt in (("text", text), ("tokens", tokens)):
        assert driver.run([raw(name, prompt)])[name] == alone
        assert driver.cached(name) > 0


def test_raw_prompts_restore_each_others_beginnings_and_a_miss_says_where(model: Callable[..., Loaded]) -> None:
    driver = KvDriver(model("plain"), None)
    beginning = words(600, 1)
    driver.run([raw("first", beginning + " and so it went")])
    driver.run([raw("second", beginning + " but then it ended")])
    assert driver.cached("second") > 500
    assert driver.note("second").reason.startswith("diverged_at(")
    assert driver.note("second").reason.endswith(", prompt)")


def test_a_base_model_without_a_template_continues_a_prompt_and_refuses_a_chat(model: Callable[..., Loaded]) -> None:
    loaded = model("plain")
    tokenizer, processor = copy.copy(loaded.tokenizer), copy.copy(loaded.processor)
    tokenizer.chat_template = processor.chat_template = None
    base = dataclasses.replace(loaded, tokenizer=tokenizer, processor=processor, capabilities=("chat",))
    prompt = words(40, 3)
    driver = Driver(base)
    driver.run_all([raw("raw", prompt), ask("chat", prompt, tokens=4)])
    assert driver.of("raw", Finished)
    (failed,) = driver.of("chat", Failed)
    assert "base model" in failed.message
    assert driver.raw("raw") == Driver(loaded).run([raw("raw", prompt)])["raw"]


@pytest.mark.parametrize("echo", [False, True])
def test_no_tokens_are_generated_where_none_are_asked_for_and_the_prompt_is_kept(
    model: Callable[..., Loaded], echo: bool
) -> None:
    loaded, prompt = model("plain"), words(600, 1)
    driver = KvDriver(loaded, None)
    driver.run_all([msgspec.structs.replace(raw("none", prompt, echo=echo), max_tokens=0)])
    (finished,) = driver.of("none", Finished)
    assert (finished.reason, finished.usage.completion_tokens, finished.usage.prompt_tokens) == ("length", 0, 600)
    assert driver.text("none") == (prompt if echo else "")
    driver.run([raw("next", prompt + "and so on")])
    assert driver.cached("next") >= 512


def test_a_text_that_is_far_too_long_is_refused_from_its_beginning(
    model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, seen = model("plain"), list[int]()
    tokenizer = loaded.tokenizer.backend_tokenizer

    class Counting:
        def encode(self, text: str, **options: Any) -> Any:
            seen.append(len(text))
            return tokenizer.encode(text, **options)

    long = words(10, 1) * 500_000
    assert (tokens_beyond(Counting(), long, 4096) or 0) > 4096
    assert sum(seen) < 20_000
    for name, request in (("raw", raw("raw", long)), ("chat", ask("chat", long))):
        driver = Driver(loaded)
        driver.run_all([request])
        (failed,) = driver.of(name, Failed)
        assert (failed.code, failed.param) == ("context_length_exceeded", "prompt" if name == "raw" else "messages")
        assert "4096" in failed.message


@given(
    text=st.lists(st.sampled_from(["word ", "    ", "中文", "a" * 50, "\n", "🙂"]), min_size=1, max_size=60).map(
        "".join
    ),
    limit=st.integers(1, 2000),
    piece=st.integers(200, 600),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
def test_no_text_that_fits_is_ruled_out(model: Callable[..., Loaded], text: str, limit: int, piece: int) -> None:
    tokenizer = model("plain").tokenizer.backend_tokenizer
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(length, "_LEAST_PIECE", piece)
        patched.setattr(length, "_LARGEST_PIECE", piece)
        patched.setattr(length, "SHORT_CHARACTERS", 0)
        found = tokens_beyond(tokenizer, text * 20, limit)
    assert found is None or limit < found <= len(tokenizer.encode(text * 20, add_special_tokens=False).ids)


def test_a_text_gets_the_tokenizers_own_beginning_unless_it_is_asked_not_to(model: Callable[..., Loaded]) -> None:
    loaded = model("plain")
    tokenizer = copy.deepcopy(loaded.tokenizer)
    begin = tokenizer.convert_tokens_to_ids(tokenizer.all_special_tokens[0])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tokenizer.all_special_tokens[0]} $A", special_tokens=[(tokenizer.all_special_tokens[0], begin)]
    )
    driver = Driver(dataclasses.replace(loaded, tokenizer=tokenizer))
    prompt = words(10, 4)
    driver.run([raw("with", prompt, special=True), raw("without", prompt), ask("chat", prompt, tokens=2)])
    (given,), (bare,) = driver.of("with", Accepted), driver.of("without", Accepted)
    assert given.prompt_tokens == bare.prompt_tokens + 1
    ids = (begin, *tokenizer.backend_tokenizer.encode(prompt, add_special_tokens=False).ids)
    assert driver.raw("with") == Driver(loaded).run([raw("ids", ids)])["ids"]
    (chat,) = driver.of("chat", Accepted)
    assert chat.prompt_tokens == len(rendered(loaded, ask("chat", prompt, tokens=2))[1]), "a template writes its own"


@pytest.mark.parametrize("as_tokens", [False, True])
def test_echo_is_the_prompts_text_before_the_first_token_and_counts_as_none(
    model: Callable[..., Loaded], as_tokens: bool
) -> None:
    loaded = model("plain")
    text, tokens = rendered(loaded, ask("chat", words(20, 5), tokens=4))
    prompt = tokens if as_tokens else text
    driver = Driver(loaded)
    driver.run_all([raw("echo", prompt, echo=True), raw("plain", prompt)])
    first, *rest = driver.of("echo", TextDelta)
    assert (first.text, first.tokens) == (text, 0)
    assert [delta.text for delta in rest] == [delta.text for delta in driver.of("plain", TextDelta)]
    assert driver.of("echo", Finished)[0].usage == driver.of("plain", Finished)[0].usage


def test_tokens_that_do_not_exist_and_prompts_that_do_not_fit_are_refused_by_name(model: Callable[..., Loaded]) -> None:
    loaded = model("plain")
    driver = Driver(dataclasses.replace(loaded, context=50))
    driver.run_all([raw("unknown", (loaded.vocabulary,)), raw("long", words(100, 6)), raw("fits", words(5, 6))])
    assert [(failed.code, failed.param) for name in ("unknown", "long") for failed in driver.of(name, Failed)] == [
        ("invalid_value", "prompt"),
        ("context_length_exceeded", "prompt"),
    ]
    assert driver.of("fits", Finished)
