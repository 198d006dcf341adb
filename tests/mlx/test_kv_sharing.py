"""What later prompts find of earlier ones, and what several requests read together."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from engine.fleet.protocol import Cancel
from engine.types import Finished, GenerationRequest, Message, Part
from engine.worker.kvcache import admission
from engine.worker.model import Loaded
from tests.mlx.conftest import ask, picture, words
from tests.mlx.kv import KvDriver, request


def test_a_system_message_of_a_hybrid_is_found_by_the_second_request(
    model: Callable[..., Loaded], tmp_path: Path
) -> None:
    loaded = model("hybrid")
    system = words(400, 3)

    def chat(name: str, seed: int) -> GenerationRequest:
        messages = (
            Message("system", (Part("text", text=system),)),
            Message("user", (Part("text", text=words(50, seed)),)),
        )
        return msgspec.structs.replace(ask(name, "x", tokens=8), messages=messages)

    driver = KvDriver(loaded, tmp_path / "kv")
    driver.run([chat("one", 1)])
    driver.run([chat("two", 2)])
    assert driver.cached("two") >= 400
    assert driver.note("two").reason.startswith("diverged_at(")
    driver.end()
    again = KvDriver(loaded, tmp_path / "kv")
    again.run([chat("three", 3)])
    assert again.cached("three") >= 400
    assert again.note("three").tier == "ssd"
    again.end()


def test_a_document_before_a_question_is_found_by_the_second_question(
    model: Callable[..., Loaded], alone: Callable[..., bytes], tmp_path: Path
) -> None:
    loaded = model("hybrid")
    document = f"{words(400, 3)}.\n\n{words(400, 4)}"

    def question(name: str, seed: int) -> GenerationRequest:
        return ask(name, f"{document}\n\n{words(20, seed)}", tokens=8)

    questions = [question("one", 1), question("two", 2)]
    expected = {item.id: alone("hybrid", item) for item in questions}
    driver = KvDriver(loaded, tmp_path / "kv")
    assert {item.id: driver.run([item])[item.id] for item in questions} == expected
    assert driver.cached("two") >= 800
    driver.end()


def test_a_picture_and_a_document_before_a_question_are_found_by_the_second_question(
    model: Callable[..., Loaded], alone: Callable[..., bytes], tmp_path: Path
) -> None:
    loaded = model("hybrid")
    asked = [ask(f"q{i}", f"{words(700, 3)}\n\n{words(20, i)}", images=(picture(1),), tokens=8) for i in range(2)]
    asked.append(ask("other", f"{words(700, 3)}\n\n{words(20, 1)}", images=(picture(2),), tokens=8))
    expected = {item.id: alone("hybrid", item) for item in asked}
    driver = KvDriver(loaded, tmp_path / "kv")
    assert {item.id: driver.run([item])[item.id] for item in asked} == expected
    assert driver.cached("q1") >= 700
    assert driver.cached("other") == 0  # no state in front of the picture
    driver.end()


@pytest.mark.parametrize("kind", ["plain", "hybrid", "windowed"])
def test_a_chat_computes_its_last_turn_only_also_after_a_restart(
    model: Callable[..., Loaded], tmp_path: Path, kind: str
) -> None:
    loaded = model(kind)
    messages = [Message("system", (Part("text", text=words(200, 3)),))]
    driver, last = KvDriver(loaded, tmp_path / "kv"), 0
    for turn in range(8):
        messages.append(Message("user", (Part("text", text=words(60, 20 + turn)),)))
        asked = msgspec.structs.replace(ask(f"t{turn}", "x", tokens=12), messages=tuple(messages))
        driver.run([asked])
        usage = driver.of(f"t{turn}", Finished)[0].usage
        if turn:
            # The answer's bytes are not always text: what was shown of it may be other tokens than those that were drawn, and
            # then the state before the answer counts, in front of the generation prompt.
            generation_prompt = len("<assistant\n")
            assert usage.prompt_tokens - usage.cached_tokens <= usage.prompt_tokens - last + generation_prompt + 1
        last = usage.prompt_tokens
        messages.append(Message("assistant", (Part("text", text=driver.text(f"t{turn}")),)))
        if turn == 3:
            driver.end()
            driver = KvDriver(loaded, tmp_path / "kv")
    driver.end()


def test_pictures_are_shared_by_content_and_never_cut(
    model: Callable[..., Loaded], alone: Callable[..., bytes], tmp_path: Path
) -> None:
    loaded = model("vision")
    text = words(100, 8)
    asked = [
        ask("first", text, images=(picture(1),), tokens=12),
        ask("same", text + "more", images=(picture(1),), tokens=12),
        ask("other", text, images=(picture(2),), tokens=12),
        ask("two", text, images=(picture(1), picture(2)), tokens=12),
    ]
    expected = {item.id: alone("vision", item) for item in asked}
    driver = KvDriver(loaded, tmp_path / "kv", chunk_tokens=16)
    for item in asked:
        assert driver.run([item])[item.id] == expected[item.id]
    assert driver.cached("same") > 100
    assert 0 < driver.cached("other") < 24  # what stands before the picture
    driver.end()


def test_a_prefill_that_is_cancelled_inside_a_picture_is_kept_up_to_it(
    model: Callable[..., Loaded], tmp_path: Path
) -> None:
    driver = KvDriver(model("hybrid"), tmp_path / "kv", chunk_tokens=16)
    driver.post(ask("gone", words(200, 4), images=(picture(3, (320, 256)),)))
    while not driver.prefilled("gone"):
        driver.tick()
    session = driver.session("gone")
    assert session is not None
    (medium,) = session.prompt.media
    assert medium.start < driver.prefilled("gone") < medium.end
    driver.post(Cancel("gone"))
    driver.tick()
    assert {kept.entry.end for kept in driver.memory.newest_first()} == {medium.start}
    driver.end()


def test_store_false_keeps_nothing_and_tenants_share_nothing(model: Callable[..., Loaded], tmp_path: Path) -> None:
    driver = KvDriver(model("plain"), tmp_path / "kv")
    driver.run([msgspec.structs.replace(request("secret", 1), store=False)])
    assert driver.kv.report.memory_entries == 0
    driver.run([request("mine", 1)])
    driver.run([msgspec.structs.replace(request("theirs", 1), tenant="another")])
    assert driver.note("mine").reason == "cold"
    assert driver.cached("theirs") == 0
    driver.end()
    assert not [path for path in tmp_path.glob("kv/files/*/*") if path.suffix != ".safetensors"]


def test_a_cancelled_prefill_is_not_lost(model: Callable[..., Loaded], tmp_path: Path) -> None:
    driver = KvDriver(model("hybrid"), tmp_path / "kv", chunk_tokens=64)
    driver.post(request("gone", 1))
    while driver.session("gone") is None or driver.ticks < 6:
        driver.tick()
    driver.post(Cancel("gone"))
    driver.tick()
    driver.run([request("again", 1)])
    assert driver.cached("again") >= 128
    driver.end()


def test_requests_with_the_same_beginning_read_it_once(model: Callable[..., Loaded], tmp_path: Path) -> None:
    loaded = model("plain")
    first = KvDriver(loaded, tmp_path / "kv")
    first.run([request("r0", 0)])
    first.end()
    driver = KvDriver(loaded, tmp_path / "kv")
    driver.run([request(f"r{i}", i) for i in range(4)])
    size = sum(path.stat().st_size for path in (tmp_path / "kv/files").glob("*/*"))
    assert 0 < driver.kv.report.read_bytes <= size
    assert all(driver.cached(f"r{i}") >= 600 for i in range(4))
    driver.end()


def test_what_many_requests_lack_is_read_once_also_behind_what_they_share_with_another(
    model: Callable[..., Loaded], tmp_path: Path
) -> None:
    loaded = model("plain")
    head, tails = words(300, 1), (words(300, 2), words(1500, 3))
    first = KvDriver(loaded, tmp_path / "kv")
    for i, tail in enumerate(tails):
        first.run([ask(f"r{i}", head + tail, tokens=4)])
    first.end()
    size = sum(path.stat().st_size for path in (tmp_path / "kv/files").glob("*/*"))
    driver = KvDriver(loaded, tmp_path / "kv")
    driver.run([ask("short", head + tails[0], tokens=4), *(ask(f"l{i}", f"{head}{tails[1]}{i}") for i in range(4))])
    assert driver.kv.report.read_bytes <= size
    assert all(driver.cached(f"l{i}") >= 1800 for i in range(4))
    driver.end()


def test_a_prompt_that_is_looked_up_again_as_it_begins_was_not_seen_twice(
    model: Callable[..., Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "WORTH_SECONDS", math.inf)  # a busy machine prefills slowly, and keeps for that
    loaded = model("plain")
    first = KvDriver(loaded, tmp_path / "kv")
    first.run([ask(f"r{i}", words(700, 100 + i), tokens=8) for i in range(4)])
    first.end()
    driver = KvDriver(loaded, tmp_path / "kv", memory_bytes=1_000_000, max_rows=1)
    driver.run([ask(f"s{i}", f"{words(700, 100 + i)} {words(900, 200 + i)}", tokens=8) for i in range(4)])
    assert all(driver.cached(f"s{i}") >= 512 for i in range(4))
    assert driver.kv.report.written_bytes == 0
    driver.end()
