"""Thought and content are told apart however the text is cut, and by both readers of an answer at the same token. No MLX."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from engine.worker.answers.channels import Channel, Channels
from engine.worker.answers.cursor import AnswerCursor
from engine.worker.answers.detokenise import RawText, TokenText
from engine.worker.answers.formats.derive import FORMATS, answer_format
from engine.worker.answers.formats.plain import PLAIN
from engine.worker.answers.formats.qwen import QWEN
from engine.worker.answers.formats.spec import AnswerFormat, Marks
from engine.worker_config import ModelOptions

ABAB = AnswerFormat("test", thought=Marks("<", "abab"))
"""Its marker begins again within itself."""


def split(answer_format: AnswerFormat, begins_in: Channel, cut: Iterable[str]) -> tuple[str, str]:
    """Thought and content of an answer that comes in these pieces."""
    channels = Channels(answer_format, begins_in)
    pieces = [piece for text in cut for piece in channels.feed(text)] + channels.flush()
    assert all(text for _, text in pieces)
    assert [channel for channel, _ in pieces] == sorted((channel for channel, _ in pieces), key=list(Channel).index)
    thought, content = ("".join(text for channel, text in pieces if channel is one) for one in Channel)
    return thought, content


def cuts_of(text: str, at: Iterable[int]) -> list[str]:
    places = sorted({0, len(text), *at})
    return [text[start:end] for start, end in itertools.pairwise(places)] or [""]


@pytest.mark.parametrize(
    ("text", "thought", "content"),
    [
        ("</think>", "", ""),
        ("a</think>b", "a", "b"),
        ("a</think>", "a", ""),
        ("</think>b", "", "b"),
        ("</</think>x", "</", "x"),
        ("a</thin", "a</thin", ""),
        ("a", "a", ""),
        ("", "", ""),
        ("</think></think>", "", "</think>"),
    ],
)
def test_a_thought_ends_with_its_marker_however_it_is_cut(text: str, thought: str, content: str) -> None:
    for count in range(3):
        for at in itertools.combinations(range(1, len(text)), count):
            assert split(QWEN, Channel.THOUGHT, cuts_of(text, at)) == (thought, content), at
    assert split(QWEN, Channel.THOUGHT, text) == (thought, content), "character by character"


@given(text=st.text("ab", max_size=24), at=st.lists(st.integers(0, 24), max_size=24))
def test_random_cuts_change_nothing(text: str, at: list[int]) -> None:
    thought, _, content = text.partition("abab")
    assert split(ABAB, Channel.THOUGHT, cuts_of(text, at)) == (thought, content)


@given(text=st.text("ab<", max_size=12), at=st.lists(st.integers(0, 12)))
def test_content_is_never_held_back_nor_split(text: str, at: list[int]) -> None:
    assert split(ABAB, Channel.CONTENT, cuts_of(text, at)) == ("", text)


@given(text=st.text("ab", max_size=12))
def test_only_the_possible_beginning_of_the_marker_is_held_back(text: str) -> None:
    channels, shown, read = Channels(ABAB, Channel.THOUGHT), "", ""
    for char in text:
        read += char
        shown += "".join(piece for _, piece in channels.feed(char))
        if channels.channel is Channel.CONTENT:
            break
        held = read.removeprefix(shown)
        assert ABAB.thought is not None
        assert ABAB.thought.close.startswith(held)
        assert len(held) < len(ABAB.thought.close)


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens 0 to 255, then pieces, one of which closes a thought in the middle of itself."""
    pieces = ["</think>", "<", "/think", ">\u2581so", ">", "\u2581a", "plan"]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {piece: 256 + i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZER = sentencepiece_tokenizer()


def token(piece: str) -> int:
    return int(TOKENIZER.convert_tokens_to_ids(piece))


@pytest.mark.parametrize(
    ("tokens", "content"),
    [
        (["\u2581a", "plan", "</think>", "plan"], ["plan"]),
        (["\u2581a", "plan", "<", "/think", ">", "plan"], ["plan"]),
        (["\u2581a", "plan", "<", "/think", ">\u2581so", "plan"], [" so", "plan"]),
        (["\u2581a", "plan", *(f"<0x{byte:02X}>" for byte in b"</think>"), "plan"], ["plan"]),
    ],
    ids=["one token", "several", "with text behind it", "bytes"],
)
def test_the_marker_is_found_in_one_token_and_across_tokens(tokens: list[str], content: list[str]) -> None:
    cursor = AnswerCursor(QWEN, Channel.THOUGHT, TokenText(TOKENIZER))
    pieces = [piece for one in tokens for piece in cursor.take(token(one))] + cursor.flush()
    assert "".join(text for channel, text in pieces if channel is Channel.THOUGHT) == " aplan"
    assert [text for channel, text in pieces if channel is Channel.CONTENT] == content


@given(before=st.binary(max_size=6), behind=st.binary(max_size=3))
def test_a_thought_ends_with_the_last_byte_of_its_marker_whatever_is_beside_it(before: bytes, behind: bytes) -> None:
    data = before + b"</think>" + behind
    cursor, ended_at = AnswerCursor(QWEN, Channel.THOUGHT, TokenText(TOKENIZER)), 0
    for place, byte in enumerate(data):
        cursor.take(byte)
        if not cursor.in_thought:
            ended_at = place + 1
            break
    assert ended_at == data.index(b"</think>") + len(b"</think>")


def test_raw_text_has_special_tokens_and_marks_bytes_that_are_not_utf8() -> None:
    tokenizer = sentencepiece_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|box|>"]})
    raw = RawText(TokenText(tokenizer))
    read = [raw.step(one) for one in (0xC3, 0xA9, 0xE4, tokenizer.convert_tokens_to_ids("<|box|>"), token("plan"))]
    assert read == ["", "é", "", "\ufffd<|box|>", "plan"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<|assistant|>\n<think>\n", QWEN),
        ("<think>", QWEN),
        ("<think>\n\n</think>\n\n", PLAIN),
        ("say <think> now", PLAIN),
        ("", PLAIN),
    ],
)
def test_only_a_prompt_that_ends_in_a_thought_has_its_format(prompt: str, expected: AnswerFormat) -> None:
    found = answer_format(ModelOptions(), prompt)
    assert found is expected
    assert found.opens_thought(prompt) is (expected is QWEN)


@pytest.mark.parametrize("known", FORMATS)
def test_the_format_that_a_card_names_is_not_derived(known: AnswerFormat) -> None:
    options = msgspec.convert({"answer_format": known.name}, ModelOptions)
    assert answer_format(options, "hello") is answer_format(options, "<think>") is known


def test_a_card_can_name_exactly_the_formats_that_there_are() -> None:
    named = set(get_args(get_args(get_type_hints(ModelOptions)["answer_format"])[0]))
    assert named == {known.name for known in FORMATS}
