"""Tokens become events: stop strings over any boundary, whole characters, the end and its reason. No MLX."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.types import Finished, TextDelta, ThoughtDelta
from engine.worker.answers.channels import Channel
from engine.worker.answers.cursor import AnswerCursor
from engine.worker.answers.detokenise import Detokeniser, TokenText
from engine.worker.answers.formats.qwen import QWEN
from engine.worker.answers.output import Output
from engine.worker.answers.stops import StopMatcher

END = 300


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Token i is byte i; END ends."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    alphabet = {chr(byte) if byte in printable else chr(next(others)): byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(f"<{i}>", special=True, normalized=False) for i in range(256, END + 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZER = byte_tokenizer()


def output(*, stops: tuple[str, ...] = (), max_tokens: int = 1000, begins_in: Channel = Channel.CONTENT) -> Output:
    tokens = TokenText(TOKENIZER)
    return Output(
        "r",
        text=Detokeniser(TOKENIZER),
        tokens=tokens,
        cursor=AnswerCursor(QWEN, begins_in, tokens),
        stop_strings=stops,
        eos_ids=frozenset({END}),
        prompt_tokens=3,
        max_tokens=max_tokens,
    )


def take_all(answer: Output, tokens: list[int]) -> tuple[list[TextDelta], Finished | None]:
    """Events of `tokens` until the answer ends, without its thoughts."""
    _, deltas, finished = take_apart(answer, tokens)
    return deltas, finished


def take_apart(answer: Output, tokens: list[int]) -> tuple[list[ThoughtDelta], list[TextDelta], Finished | None]:
    thoughts: list[ThoughtDelta] = []
    deltas: list[TextDelta] = []
    for token in tokens:
        for event in answer.take(token, None, ()):
            match event:
                case ThoughtDelta():
                    assert not deltas, "a thought comes before the answer"
                    thoughts.append(event)
                case TextDelta():
                    deltas.append(event)
                case Finished():
                    return thoughts, deltas, event
    return thoughts, deltas, None


def first_end(text: str, stops: tuple[str, ...]) -> str:
    """The text before the stop string that completes first; of several that complete at once, before the longest."""
    for end in range(len(text) + 1):
        if starts := [end - len(stop) for stop in stops if text[:end].endswith(stop)]:
            return text[: min(starts)]
    return text


@given(
    text=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_stops_fed_by_character_end_where_they_first_complete(text: str, stops: list[str]) -> None:
    matcher, shown, stopped = StopMatcher(tuple(stops)), "", False
    for char in text:
        piece, stopped = matcher.feed(char)
        shown += piece
        assert text.startswith(shown), "text was shown that is not there"
        if stopped:
            break
    if not stopped:
        shown += matcher.flush()
    assert shown == first_end(text, tuple(stops))


@given(text=st.text("ab", max_size=20), stop=st.text("ab", min_size=1, max_size=4), cuts=st.lists(st.integers(1, 5)))
def test_one_stop_is_found_however_the_text_is_cut(text: str, stop: str, cuts: list[int]) -> None:
    matcher, shown, stopped, rest = StopMatcher((stop,)), "", False, text
    for size in [*cuts, len(text)]:
        piece, stopped = matcher.feed(rest[:size])
        shown, rest = shown + piece, rest[size:]
        if stopped:
            break
    assert shown + ("" if stopped else matcher.flush()) == text.split(stop)[0]
    assert stopped == (stop in text)


def test_only_the_possible_beginning_of_a_stop_is_held_back() -> None:
    matcher = StopMatcher(("STOP",))
    assert [matcher.feed(piece)[0] for piece in ("a S", "T", "x", "ST")] == ["a ", "", "STx", ""]
    assert matcher.flush() == "ST"


@pytest.mark.parametrize("text", ["grüße", "会议纪要：九点", "🙂👩‍🚀 ok", "plain"])
def test_characters_come_whole_and_once(text: str) -> None:
    deltas, finished = take_all(output(), [*text.encode(), END])
    assert "".join(delta.text for delta in deltas) == text
    assert all("�" not in delta.text for delta in deltas)
    assert len(deltas) == len(text.encode()), "one event a token"
    assert finished is not None
    assert finished.reason == "stop"


def test_invalid_bytes_are_shown_as_such_and_do_not_hide_what_follows() -> None:
    deltas, _ = take_all(output(), [0xFF, *b"abc", END])
    assert "".join(delta.text for delta in deltas).endswith("abc")


def test_a_stop_across_tokens_ends_the_answer_before_it() -> None:
    deltas, finished = take_all(output(stops=("\nUser:",)), list(b"Hi.\nUser: more"))
    assert "".join(delta.text for delta in deltas) == "Hi."
    assert finished is not None
    assert (finished.reason, finished.text) == ("stop", "")
    assert finished.usage.completion_tokens == len(b"Hi.\nUser:")


def test_what_was_held_back_comes_with_the_end() -> None:
    deltas, finished = take_all(output(stops=("\nUser:",)), [*b"Hi.\nUs", END])
    assert "".join(delta.text for delta in deltas) == "Hi."
    assert finished is not None
    assert finished.text == "\nUs"


def test_the_last_allowed_token_ends_with_length_and_the_end_token_with_stop() -> None:
    _, by_length = take_all(output(max_tokens=3), list(b"abcdef"))
    assert by_length is not None
    assert (by_length.reason, by_length.usage.completion_tokens, by_length.usage.prompt_tokens) == ("length", 3, 3)
    deltas, by_end = take_all(output(max_tokens=3), [*b"ab", END])
    assert by_end is not None
    assert (by_end.reason, by_end.usage.completion_tokens, len(deltas)) == ("stop", 3, 2)


def test_a_thought_comes_before_the_answer_one_event_a_token() -> None:
    said = b"a plan</think>Hi"
    thoughts, deltas, finished = take_apart(output(begins_in=Channel.THOUGHT), [*said, END])
    assert "".join(thought.text for thought in thoughts) == "a plan"
    assert "".join(delta.text for delta in deltas) == "Hi"
    assert [event.tokens for event in [*thoughts, *deltas]] == [1] * len(said)
    assert finished is not None
    assert (finished.reason, finished.usage.completion_tokens) == ("stop", len(said) + 1)


@pytest.mark.parametrize(("tokens", "reason"), [([*b"a plan</thi"], "length"), ([*b"a plan</th", END], "stop")])
def test_a_thought_that_is_not_closed_is_all_there_is(tokens: list[int], reason: str) -> None:
    thoughts, deltas, finished = take_apart(output(begins_in=Channel.THOUGHT, max_tokens=11), tokens)
    said = [token for token in tokens if token != END]
    assert "".join(thought.text for thought in thoughts) == bytes(said).decode()
    assert sum(thought.tokens for thought in thoughts) == len(said)
    assert deltas == []
    assert finished is not None
    assert (finished.reason, finished.text, finished.usage.completion_tokens) == (reason, "", 11)


def test_stop_strings_in_a_thought_do_not_end_the_answer() -> None:
    deltas, finished = take_all(output(begins_in=Channel.THOUGHT, stops=("STOP",)), list(b"STOP</think>a STOP"))
    assert "".join(delta.text for delta in deltas) == "a "
    assert finished is not None
    assert finished.reason == "stop"


def test_bytes_of_a_token_are_exact_in_a_byte_level_vocabulary() -> None:
    tokens = TokenText(TOKENIZER)
    assert b"".join(tokens.bytes_of(token) for token in "é 会".encode()) == "é 会".encode()
    assert tokens.bytes_of(END) == b"<300>"
    assert tokens.bytes_of(99999) == b""


def test_bytes_of_a_sentencepiece_token_are_its_characters() -> None:
    vocabulary = {"<unk>": 0, "▁caf": 1, "é": 2, "<0x0A>": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    tokens = TokenText(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert [tokens.bytes_of(i) for i in (1, 2, 3)] == [b" caf", "é".encode(), b"\n"]
