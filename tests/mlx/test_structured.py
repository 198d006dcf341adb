"""Answers of a given form, in a batch beside free ones, with every way of sampling."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from llguidance import LLMatcher

from engine.fleet.protocol import Cancel
from engine.types import Accepted, Failed, Finished, Structure, TextDelta, ThoughtDelta
from engine.worker.answers.formats import derive
from engine.worker.answers.formats.spec import AnswerFormat, Marks
from engine.worker.forms import compiling
from engine.worker.forms.form import Mask
from engine.worker.forms.grammar import compile_structure, compiled
from engine.worker.forms.judging import COMPILE_MEMORY_BYTES, COMPILE_SECONDS, QUICK_SECONDS
from engine.worker.forms.vocabulary import wrapped_tokenizer
from engine.worker.model import Loaded
from tests import checkpoints
from tests.mlx.conftest import Driver, ask, words
from tests.mlx.kv import KvDriver

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,8}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["tea", "咖啡", 'a "quote"']}, "minItems": 1, "maxItems": 3},
        "boss": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/boss"}]},
    },
    "required": ["name", "age", "likes", "boss"],
    "additionalProperties": False,
    "$defs": {"boss": {"type": "object", "properties": {"id": {"const": 7}}, "required": ["id"], "additionalProperties": False}},
}  # fmt: skip
HOT = {"temperature": 2.0}
EOS = 258


def schema(value: dict[str, Any]) -> Structure:
    return Structure("json_schema", json.dumps(value), "response_format")


def regex(pattern: str) -> Structure:
    return Structure("regex", pattern, "guided_regex")


def choice(*texts: str) -> Structure:
    return Structure("choice", json.dumps(texts), "guided_choice")


def grammar(text: str) -> Structure:
    return Structure("grammar", text, "guided_grammar")


ANY_OBJECT = schema({"type": "object"})


def assert_person(text: str) -> None:
    person = json.loads(text)
    assert list(person) == ["name", "age", "likes", "boss"]
    assert re.fullmatch("[A-Z][a-z]{1,8}", person["name"])
    assert person["age"] in range(121)
    assert 1 <= len(person["likes"]) <= 3
    assert set(person["likes"]) <= {"tea", "咖啡", 'a "quote"'}
    assert person["boss"] in (None, {"id": 7})


def ended(driver: Driver, name: str) -> str:
    """The text of an answer that the model ended itself."""
    (finished,) = driver.of(name, Finished)
    assert finished.reason == "stop"
    return driver.text(name)


def refusal(driver: Driver, name: str) -> Failed:
    (failed,) = driver.of(name, Failed)
    assert not driver.of(name, Accepted)
    return failed  # type: ignore[no-any-return]


def test_every_form_beside_free_rows_at_temperature_two(
    model: Callable[..., Loaded], alone: Callable[..., bytes]
) -> None:
    loaded = model("plain")
    free = [ask(f"free{i}", words(20 + i, i), tokens=60, **HOT, seed=i) for i in range(3)]
    expected = {request.id: alone("plain", request) for request in free}
    bound = [
        *(ask(f"person{i}", words(9, i), tokens=400, structure=schema(PERSON), **HOT, seed=i) for i in range(4)),
        ask("regex", "x", tokens=60, structure=regex(r"[a-f]{3}-\d{2,4}(é|日本)"), **HOT, seed=1),
        ask("choice", "x", tokens=60, structure=choice("yes", "no", "日本 (maybe)\n"), **HOT, seed=1),
        ask("lark", "x", tokens=60, structure=grammar('start: "a" start | B\nB: /[xy]{2}/'), **HOT, seed=1),
        ask("gbnf", "x", tokens=60, structure=grammar('root ::= "b" ("c" | "d")+ "e"'), **HOT, seed=1),
    ]
    driver = Driver(loaded)
    answers = driver.run([*free, *bound], [0, 3, 9, 0, 0, 1, 5, 2, 0, 0, 7])
    assert {name: answers[name] for name in expected} == expected
    for i in range(4):
        assert_person(ended(driver, f"person{i}"))
    assert re.fullmatch(r"[a-f]{3}-\d{2,4}(é|日本)", ended(driver, "regex"))
    assert ended(driver, "choice") in ("yes", "no", "日本 (maybe)\n")
    assert re.fullmatch("a*[xy]{2}", ended(driver, "lark"))
    assert re.fullmatch("b[cd]+e", ended(driver, "gbnf"))


@pytest.mark.parametrize("kind", [*checkpoints.KINDS, "four bits"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kind_of_model_keeps_to_a_schema(model: Callable[..., Loaded], kind: str, dtype: str) -> None:
    if kind == "four bits" and dtype == "bfloat16":
        pytest.skip("one checkpoint of four bits is enough")
    driver = Driver(model(kind, dtype))
    driver.run([ask(name, words(30, 2), tokens=400, structure=schema(PERSON), seed=1, **HOT) for name in "ab"])
    assert_person(ended(driver, "a"))
    assert driver.text("a") == driver.text("b")


SAMPLERS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 2.0, "top_k": 3},
    {"temperature": 2.0, "top_p": 0.3},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 2.0, "top_k": 5, "top_p": 0.5, "min_p": 0.05},
    {"temperature": 1.5, "presence_penalty": 2.0, "frequency_penalty": 2.0, "repetition_penalty": 1.5},
    {"temperature": 1.5, "logit_bias": {EOS: 100.0, ord("{"): -100.0}},
]


@pytest.mark.parametrize("sampling", SAMPLERS, ids=str)
def test_every_sampler_keeps_to_a_schema(model: Callable[..., Loaded], sampling: dict[str, Any]) -> None:
    requests = [
        ask("bound", words(30, 3), tokens=400, structure=schema(PERSON), seed=5, **sampling),
        ask("free", words(30, 3), tokens=50, seed=5, **sampling),
    ]
    alone = Driver(model("plain")).run(requests[:1])["bound"]
    driver = Driver(model("plain"))
    assert driver.run(requests, [0, 2])["bound"] == alone
    assert_person(ended(driver, "bound"))


def test_a_bias_pulls_within_the_form(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("plain"))
    bias = {"logit_bias": {ord("b"): 100.0, ord("z"): 100.0}}
    driver.run([ask("a", "x", tokens=40, structure=regex("[a-c]{9}"), **HOT, **bias)])
    assert ended(driver, "a") == "b" * 9


def test_log_probabilities_are_those_of_the_model_without_the_form(model: Callable[..., Loaded]) -> None:
    loaded = model("plain")
    free, bound = Driver(loaded), Driver(loaded)
    free.run([ask("a", words(30, 1), tokens=1, top_logprobs=5)])
    bound.run([ask("a", words(30, 1), tokens=1, top_logprobs=5, structure=choice("\x01\x02"))])
    (expected,), (event,) = free.of("a", TextDelta), bound.of("a", TextDelta)
    assert event.top == expected.top
    assert event.logprob.raw == b"\x01"
    assert event.logprob.logprob <= event.top[-1].logprob


def test_the_limit_may_cut_an_answer_and_says_so(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("plain"))
    driver.run([ask("a", "x", tokens=7, structure=schema(PERSON))])
    assert driver.of("a", Finished)[0].reason == "length"
    assert len(driver.text("a")) == 7


def test_a_stop_string_ends_an_answer_within_its_form(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("plain"))
    driver.run([ask("a", "x", tokens=40, structure=regex("abcdef"), stop=("de",))])
    assert ended(driver, "a") == "abc"


def test_any_object_is_one(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("plain"))
    # A bias towards the ends of strings, lists and objects: at random most values would never end.
    bias = {ord(char): 8.0 for char in '"}]'} | {EOS: 8.0}
    names = [f"r{i}" for i in range(6)]
    driver.run(
        [
            ask(name, name, tokens=900, structure=ANY_OBJECT, logit_bias=bias, seed=i, **HOT)
            for i, name in enumerate(names)
        ]
    )
    assert all(isinstance(json.loads(ended(driver, name)), dict) for name in names)


def test_the_end_comes_when_nothing_else_may(model: Callable[..., Loaded]) -> None:
    """The model would otherwise go on for ever, and a second token ends its answers too."""
    loaded = dataclasses.replace(model("plain"), eos_ids=frozenset({EOS, 256}))
    driver = Driver(loaded)
    driver.run([ask(name, "x", tokens=20, structure=choice("ab"), seed=i, **HOT) for i, name in enumerate("abcdefgh")])
    for name in "abcdefgh":
        assert ended(driver, name) == "ab"
        assert driver.of(name, Finished)[0].usage.completion_tokens == 3


def test_a_preempted_row_goes_on_in_its_form(model: Callable[..., Loaded], alone: Callable[..., bytes]) -> None:
    loaded = model("plain")
    request = ask("a", words(40, 1), tokens=400, structure=schema(PERSON), seed=2, **HOT)
    expected = alone("plain", request)
    driver = KvDriver(loaded, None)
    driver.post(request)
    preempted = 0
    while not driver.over("a"):
        driver.tick()
        if driver.ticks % 9 == 0:
            preempted += driver.preempt("a")
    assert preempted >= 3
    assert driver.raw("a") == expected
    assert_person(driver.text("a"))


REFUSED: list[tuple[str, Structure]] = [
    ("an empty enum", schema({"enum": []})),
    ("contradiction", schema({"type": "integer", "minimum": 5, "maximum": 3})),
    ("a required property that is forbidden", schema({"type": "object", "required": ["a"], "additionalProperties": False})),
    ("itself inside itself", schema({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]})),
    ("itself", schema({"$ref": "#"})),
    ("a keyword that is not known", schema({"type": "array", "uniqueItems": True})),
    ("a keyword hidden by x-guidance", schema({"uniqueItems": True, "x-guidance": {"lenient": True}})),
    ("a type that is none", schema({"type": "strng"})),
    ("a reference to elsewhere", schema({"$ref": "http://example.com/schema.json"})),
    ("lists without end", schema(json.loads('{"items":' * 150 + "{}" + "}" * 150))),
    ("two thousand optional properties", schema({"type": "object", "properties": {f"p{i}": {} for i in range(2000)}})),
    ("no expression", regex("(")),
    ("look-ahead", regex("a(?=b)")),
    ("nothing matches", regex(r"[^\s\S]")),
    ("no grammar", grammar("start: (")),
    ("no grammar of either kind", grammar("what?")),
    ("unknown rule", grammar("start: other")),
    ("recursion without end", grammar('start: "a" start')),
    ("recursion without end, in GBNF", grammar('root ::= "a" b\nb ::= "b" root')),
]  # fmt: skip


PATTERNS = {"allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{n}}}"} for n in range(5, 25)]}
COSTLY = {
    "twenty patterns at once": schema(PATTERNS),
    "the same deep inside": schema({"type": "object", "properties": {"a": {"type": "array", "items": PATTERNS}}}),
    "the same in a grammar": grammar("start: %json " + json.dumps(PATTERNS)),
    "multiples of a large prime": schema({"type": "integer", "multipleOf": 999_983}),
}


@pytest.mark.parametrize("costly", COSTLY.values(), ids=COSTLY)
def test_what_costs_too_much_to_compile_is_refused_in_time_and_holds_up_no_other(
    model: Callable[..., Loaded], costly: Structure
) -> None:
    driver = Driver(model("plain"))
    driver.run([ask("warm", "x", structure=choice("warm"))])
    begun = time.monotonic()
    driver.post(ask("costly", "x", structure=costly))
    for i in range(3):
        driver.post(ask(f"cheap{i}", "x", structure=choice(f"cheap {i}")))
    while not all(driver.of(f"cheap{i}", Finished) for i in range(3)):
        driver.tick()
    assert not driver.of("costly", Failed)
    driver.drain()
    failed = refusal(driver, "costly")
    assert (failed.code, failed.param) == ("invalid_value", costly.param)
    assert (
        time.monotonic() - begun < QUICK_SECONDS + COMPILE_SECONDS + 20
    )  # a machine under load starts children slowly
    driver.run([ask("again", "x", structure=choice("again"))])


def test_a_cheap_form_does_not_wait_behind_many_costly_ones(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("plain"))
    driver.run([ask("warm", "x", structure=choice("warm"))])
    for i in range(6):
        hard = {"allOf": [*PATTERNS["allOf"], {"type": "string", "maxLength": 100 + i}]}
        driver.post(ask(f"costly{i}", "x", structure=schema(hard)))
    driver.post(ask("cheap", "x", structure=choice("cheap")))
    while not driver.of("cheap", Finished):
        driver.tick()
    # Two may have been ended before it: the one that was being judged, and one at the other child.
    assert sum(bool(driver.of(f"costly{i}", Failed)) for i in range(6)) <= 2
    for i in range(6):
        driver.post(Cancel(f"costly{i}"))
    driver.drain()


def test_only_the_child_takes_the_memory(model: Callable[..., Loaded]) -> None:
    """20 patterns take 10 GB of a process without bounds."""
    driver, before = Driver(model("plain")), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    driver.run_all([ask("a", "x", structure=schema(PATTERNS))])
    assert driver.of("a", Failed)
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < COMPILE_MEMORY_BYTES / 2


@pytest.mark.parametrize("structure", [case[1] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_cannot_be_followed_is_refused_by_name(model: Callable[..., Loaded], structure: Structure) -> None:
    driver = Driver(model("plain"))
    for name in ("a", "again"):
        driver.run_all([ask(name, "x", structure=structure)])
        failed = refusal(driver, name)
        assert (failed.code, failed.param) == ("invalid_value", structure.param)
        assert len(failed.message) < 400
        assert "\n" not in failed.message
    driver.run([ask("free", "x")])


def test_a_form_that_leads_nowhere_ends_its_row_alone(
    model: Callable[..., Loaded], alone: Callable[..., bytes]
) -> None:
    loaded = model("plain")
    other = ask("other", words(30, 1), tokens=30)
    expected = alone("plain", other)
    driver = Driver(loaded)
    driver.run_all([other, ask("a", "x", structure=grammar('start: "a" "b" C\nC: /x/ & /y/'))])
    assert driver.of("a", Failed)[0].param == "guided_grammar"
    assert driver.raw("other") == expected


def test_a_model_without_an_end_cannot_keep_to_a_form(model: Callable[..., Loaded]) -> None:
    driver = Driver(dataclasses.replace(model("plain"), eos_ids=frozenset()))
    driver.run_all([ask("a", "x", structure=choice("a"))])
    assert "no token that ends" in refusal(driver, "a").message


def test_a_request_cancelled_while_its_form_is_compiled_never_starts(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("plain"))
    driver.post(ask("a", "x", structure=schema(PERSON)))
    driver.post(Cancel("a"))
    driver.post(ask("b", "x", tokens=400, structure=schema(PERSON)))
    driver.drain()
    assert not [event for event in driver.recorder.sent if event.id == "a"]
    assert_person(ended(driver, "b"))


class Compiler:
    """In place of the library's compiler: it notes what it is asked for, and compiles nothing until `may` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.begun, self.may = threading.Semaphore(0), threading.Event()
        monkeypatch.setattr("engine.worker.forms.compiling.compiled", self)

    def __call__(self, tokenizer: Any, grammar: str) -> Any:
        self.asked.append(grammar)
        self.begun.release()
        assert self.may.wait(60)
        return compiled(tokenizer, grammar)


def test_a_form_that_nobody_waits_for_any_more_is_not_compiled(
    model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, compiler = Driver(model("plain")), Compiler(monkeypatch)
    first, second = ask("first", "x", structure=choice("one")), ask("second", "x", structure=choice("two"))
    for message in (first, second, Cancel("second")):
        driver.post(message)
    driver.tick()
    assert compiler.begun.acquire(timeout=60)
    compiler.may.set()
    driver.run_all([ask("third", "x", structure=choice("three"))])
    assert [text for text in ("one", "two", "three") if any(text in grammar for grammar in compiler.asked)] == [
        "one",
        "three",
    ]
    assert (ended(driver, "first"), ended(driver, "third")) == ("one", "three")
    assert not [event for event in driver.recorder.sent if event.id == "second"]


def test_an_answer_that_is_late_while_its_form_is_compiled_fails_then(
    model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, compiler = Driver(model("plain")), Compiler(monkeypatch)
    late = ask("late", "x", structure=choice("one"))
    driver.post(msgspec.structs.replace(late, deadline=time.monotonic() + 0.05))
    driver.post(ask("patient", "x", structure=choice("one")))
    while not driver.of("late", Failed):
        driver.tick()
    assert refusal(driver, "late").code == "deadline_exceeded"
    compiler.may.set()
    driver.drain()
    assert ended(driver, "patient") == "one"
    assert len([event for event in driver.recorder.sent if event.id == "late"]) == 1


def test_a_form_is_tried_again_after_a_fault_of_ours(
    model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    def panic(tokenizer: Any, grammar: str) -> Any:
        raise BaseException("as a panic of the library is raised")  # noqa: TRY002

    driver = Driver(model("plain"))
    with monkeypatch.context() as patched:
        patched.setattr("engine.worker.forms.compiling.compiled", panic)
        driver.run_all([ask("a", "x", structure=choice("one")), ask("b", "x", structure=choice("one"))])
    assert [refusal(driver, name).code for name in "ab"] == ["internal_error"] * 2
    driver.run_all([ask("again", "x", structure=choice("one"))])
    assert ended(driver, "again") == "one"


def test_an_unexpected_end_fails_what_waits_for_its_form(
    model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(model("plain"))
    driver.post(ask("a", "x", structure=choice("a")))
    driver.post(ask("b", "x"))
    monkeypatch.setattr(driver.loop._forms, "received", lambda message: [])
    driver.break_loop(monkeypatch)
    with pytest.raises(RuntimeError):
        driver.loop.run()
    assert {driver.of(name, Failed)[0].code for name in "ab"} == {"worker_lost"}


def test_forms_are_compiled_once(model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(compiling, "KEPT_FORMS", 2)

    def noted(tokenizer: Any, grammar: str) -> Any:
        asked.extend(text for text in ("one", "two", "three") if text in grammar)
        return compiled(tokenizer, grammar)

    monkeypatch.setattr(compiling, "compiled", noted)
    driver = Driver(model("plain"))
    one, two, three = choice("one"), choice("two"), choice("three")
    for i, form in enumerate([one, two, one, three, one, two]):
        driver.run([ask(f"r{i}", "x", tokens=20, structure=form)])
        assert ended(driver, f"r{i}") == json.loads(form.text)[0]
    assert asked == ["one", "two", "three", "two"]
    assert len(driver.loop._forms._forms) == 2


# Thoughts ---------------------------------------------------------------------------------------------------------------


def thinking(loaded: Loaded, text: str, *, tokens: int, **sampling: Any) -> Any:
    """A request whose prompt ends inside a think block, biased to close it."""
    bias = {ord(char): 30.0 for char in "</think>"}
    return ask("a", text, role="raw", tokens=tokens, structure=regex("[a-c]{5}"), logit_bias=bias, seed=1, **sampling)


def test_the_form_begins_behind_a_thought_that_the_prompt_opened(
    model: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed_by_chance = AnswerFormat("test", thought=Marks("<think>", "k"))  # a random model says "k" some time
    monkeypatch.setattr(derive, "FORMATS", (closed_by_chance,))
    driver = Driver(model("plain"))
    driver.run([thinking(model("plain"), "x\n<think>\n", tokens=200, **HOT)])
    assert re.fullmatch("[a-c]{5}", ended(driver, "a"))
    (finished,) = driver.of("a", Finished)
    thoughts = driver.of("a", ThoughtDelta)
    assert "".join(thought.text for thought in thoughts)
    answer_tokens = 6  # five letters and the end
    assert sum(thought.tokens for thought in thoughts) == finished.usage.completion_tokens - answer_tokens > 0


def test_a_thought_that_never_ends_shows_nothing(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("plain"))
    bias = {EOS: 100.0}  # an end within the thought would leave the answer without its form
    driver.run([ask("a", "<think>", role="raw", tokens=20, structure=regex("[a-c]{5}"), logit_bias=bias)])
    assert driver.of("a", Finished)[0].reason == "length"
    assert len(driver.of("a", ThoughtDelta)) == 20
    assert driver.text("a") == ""


def test_a_message_that_ends_like_an_open_thought_frees_nothing(model: Callable[..., Loaded]) -> None:
    driver = Driver(model("plain"))
    driver.run([ask("a", "say <think>", tokens=20, structure=regex("[a-c]{5}"), **HOT)])
    assert re.fullmatch("[a-c]{5}", ended(driver, "a"))


# Masks ------------------------------------------------------------------------------------------------------------------


def matcher_of(loaded: Loaded, pattern: str) -> LLMatcher:
    found, problem = compile_structure(wrapped_tokenizer(loaded), regex(pattern))
    assert found is not None, problem
    return found


@pytest.mark.parametrize("width", [320, 268, 261, 200, 99, 1000])
def test_masks_fit_logits_wider_and_narrower_than_the_tokenizer(model: Callable[..., Loaded], width: int) -> None:
    addends = Mask(268).of(matcher_of(model("plain"), "[a-c]"), width)
    assert addends.shape == (1, width)
    assert np.flatnonzero(addends[0] == 0).tolist() == [token for token in (97, 98, 99) if token < width]
    assert set(addends[0]) == {0.0, -math.inf}


def test_tokens_that_only_the_model_has_are_never_drawn(model: Callable[..., Loaded]) -> None:
    """The checkpoint has 320 logits, its tokenizer 268 tokens."""
    driver = Driver(model("plain"))
    bias = {300: 100.0, 319: 100.0}
    driver.run([ask("a", "x", tokens=60, structure=regex(r"[^\x00]{20}"), logit_bias=bias, **HOT)])
    assert len(ended(driver, "a")) == 20


def test_addends_are_those_of_each_bit() -> None:
    class Bits:
        def unsafe_compute_mask_ptr(self, address: int, size: int) -> None:
            import ctypes

            assert size == words_.nbytes
            ctypes.memmove(address, words_.ctypes.data, size)

    words_ = np.random.default_rng(1).integers(0, 1 << 32, 10, dtype=np.uint32)
    allowed = [token for token in range(320) if words_[token // 32] >> (token % 32) & 1]
    matcher: Any = Bits()
    assert np.flatnonzero(Mask(320).of(matcher, 320)[0] == 0).tolist() == allowed
    logits = mx.random.normal((1, 320)) + mx.array(Mask(320).of(matcher, 320))
    assert np.flatnonzero(np.isfinite(np.array(logits[0]))).tolist() == allowed
