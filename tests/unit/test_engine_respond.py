"""A dialect is pure functions: whatever its shapes, it is answered, closed and told of errors alike."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.requests import Request as HttpRequest

from duet.errors import Busy, ContextTooLong, DuetError
from duet.wire import Usage
from engine.api.assembly import Answer
from engine.api.dialects.completions.replies import CompletionReply
from engine.api.metered import Metered
from engine.api.respond import Dialect, respond
from engine.types import (
    Accepted,
    Embedded,
    Event,
    Events,
    Failed,
    Finished,
    GenerationRequest,
    ModelInfo,
    Request,
    TextDelta,
    TokenLogprob,
    Work,
    only,
)


class Shouting:
    """A dialect of its own, with errors of its own."""

    def whole(self, answers: Sequence[Answer]) -> bytes:
        return "|".join(answer.text.upper() for answer in answers).encode()

    def first_frames(self) -> bytes:
        return b"<"

    def frames(self, index: int, event: Event) -> bytes:
        return f"{index}{event.text.upper()} ".encode() if isinstance(event, TextDelta | Finished) else b""

    def last_frames(self) -> bytes:
        return b">"

    def error(self, error: DuetError) -> bytes:
        return f"ALAS {error.code}".encode()


class Script:
    """Work that says what a request's id stands for, and notes which requests were closed before their end."""

    def __init__(self, **said: list[Event | DuetError | float | None]) -> None:
        self.said, self.cancelled = said, list[str]()

    async def run(self, request: Request) -> Events:
        ended = False
        try:
            for event in self.said[request.id]:
                if isinstance(event, float):
                    await asyncio.sleep(event)
                    continue
                if event is None:
                    await asyncio.Event().wait()
                    continue
                if isinstance(event, DuetError):
                    ended = True
                    raise event
                ended = isinstance(event, Finished | Failed)
                yield event
        finally:
            if not ended:
                self.cancelled.append(request.id)


class Shelf:
    async def list(self) -> Sequence[ModelInfo]:
        return []

    async def resolve(self, name: str) -> ModelInfo:
        return ModelInfo(id=name)

    def is_here(self, model: str) -> bool:
        return True

    def progress(self, model: str) -> str:
        return ""


def says(name: str, *texts: str) -> list[Event | DuetError | float | None]:
    return [Accepted(name, 3), *(TextDelta(name, text) for text in texts), Finished(name, "stop", Usage(3, 2, 0))]


async def answered(
    work: Script, *names: str, stream: bool, dialect: Dialect | None = None, metered: Work | None = None
) -> bytes:
    """The body as a server sends it."""
    return (await sent(work, *names, stream=stream, dialect=dialect, metered=metered))[0]


async def sent(
    work: Script,
    *names: str,
    stream: bool,
    dialect: Dialect | None = None,
    metered: Work | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[bytes, dict[str, str]]:
    """Body and headers."""
    body, never = b"", asyncio.Event()

    async def receive() -> Any:
        await never.wait()

    async def send(message: Any) -> None:
        nonlocal body
        body += message.get("body", b"")

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    response = await respond(
        dialect or Shouting(),
        [GenerationRequest(id=name, model="m") for name in names],
        request=HttpRequest(scope, receive),
        work=metered or Metered(work, Shelf()),
        waiting=lambda: "",
        stream=stream,
        headers=headers or {},
    )
    await response(scope, receive, send)
    return body, dict(response.headers)


async def test_one_choice_and_several_whole_and_streamed() -> None:
    work = Script(a=says("a", "he", "llo"), b=says("b", "bye"))
    assert await answered(work, "a", stream=False) == b"HELLO"
    assert await answered(work, "a", stream=True) == b"<0HE 0LLO 0 >"
    assert await answered(work, "a", "b", stream=False) == b"HELLO|BYE"
    streamed = await answered(work, "a", "b", stream=True)
    assert (streamed[:1], streamed[-1:], streamed.count(b"0"), streamed.count(b"1")) == (b"<", b">", 3, 2)
    assert work.cancelled == []


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_worker_says_of_a_request_is_in_the_headers(stream: bool) -> None:
    """A bound that the context set, and fields that the model has no place for, beside those of the door."""
    accepted = Accepted("a", 3, max_tokens=61, ignored=("messages.name",))
    work = Script(a=[accepted, *says("a", "x")[1:]], b=says("b", "y"))
    _, plain = await sent(work, "b", stream=stream, headers={"X-Duet-Ignored": "zz"})
    assert ("x-duet-max-tokens" not in plain) and plain["x-duet-ignored"] == "zz"
    _, bounded = await sent(work, "a", stream=stream, headers={"X-Duet-Ignored": "zz"})
    assert (bounded["x-duet-max-tokens"], bounded["x-duet-ignored"]) == ("61", "zz, messages.name")


async def test_the_least_bound_of_several_prompts_is_told() -> None:
    work = Script(
        a=[Accepted("a", 3, max_tokens=61), *says("a", "x")[1:]],
        b=[Accepted("b", 9, max_tokens=55), *says("b", "y")[1:]],
    )
    _, headers = await sent(work, "a", "b", stream=False)
    assert headers["x-duet-max-tokens"] == "55"


@pytest.mark.parametrize("failure", [Busy("full"), Failed("a", "server_busy", "full")])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_word_is_raised(failure: Any, stream: bool) -> None:
    work = Script(a=[failure], b=says("b", "bye"))
    with pytest.raises(Busy, match="full"):
        await answered(work, "a", stream=stream)
    with pytest.raises(Busy, match="full"):
        await answered(work, "a", "b", stream=False)


async def test_a_failure_in_a_stream_is_said_in_the_dialects_own_shape_and_ends_all_choices() -> None:
    work = Script(a=[Accepted("a", 3), 0.02, ContextTooLong("too long")], b=[Accepted("b", 3), None])
    assert await answered(work, "a", stream=True) == b"<ALAS context_length_exceeded"
    assert await answered(work, "a", "b", stream=True) == b"<ALAS context_length_exceeded"
    assert work.cancelled == ["b"]


@pytest.mark.parametrize("refused", ["a", "b", "c"])
@pytest.mark.parametrize("how", ["event", "error"])
async def test_a_stream_of_several_prompts_begins_when_none_is_refused(refused: str, how: str) -> None:
    """One wrong prompt is one error with a status, however much of the others has been said already."""
    error = Failed(refused, "context_length_exceeded", "too long") if how == "event" else ContextTooLong("too long")
    work = Script(**{name: [0.05, error] if name == refused else [*says(name, "hello")[:2], None] for name in "abc"})
    with pytest.raises(ContextTooLong, match="too long"):
        await answered(work, "a", "b", "c", stream=True)
    assert sorted(work.cancelled) == sorted({"a", "b", "c"} - {refused})


async def test_a_stream_is_promised_though_one_choice_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.api.respond.PROMISE_AFTER_SECONDS", 0.05)
    work = Script(a=says("a", "hello"), b=[0.3, *says("b", "bye")])
    streamed = await answered(work, "a", "b", stream=True)
    assert (streamed[:1], streamed[-1:], streamed.count(b"0HELLO"), streamed.count(b"1BYE")) == (b"<", b">", 1, 1)
    late = Script(a=says("a", "hello"), b=[0.3, ContextTooLong("too long")])
    assert await answered(late, "a", "b", stream=True) == b"<0HELLO 0 ALAS context_length_exceeded"


async def test_an_unexpected_error_is_ours_and_says_nothing_of_itself() -> None:
    class Broken:
        async def run(self, request: Request) -> Events:
            raise ZeroDivisionError("secret")
            yield

    events = Metered(Broken(), Shelf()).run(GenerationRequest(id="a", model="m"))
    with pytest.raises(DuetError, match="the engine's log says more") as raised:
        await only(events, Embedded)
    assert raised.value.code == "internal_error"


def token(text: bytes, logprob: float = -0.5) -> TokenLogprob:
    return TokenLogprob(text.decode(errors="replace"), text, logprob)


def test_offsets_count_the_shown_characters_and_parts_of_a_character_have_names_of_their_own() -> None:
    halves = "é".encode()[:1], "é".encode()[1:]
    deltas = [
        TextDelta("a", "ab", token(b"ab"), (token(b"ab"), token(b"x", -2.0))),
        TextDelta("a", "", token(halves[0]), (token(halves[0]), token(b"\xff", float("-inf")))),
        TextDelta("a", "é", token(halves[1])),
        TextDelta("a", "!", token(b"!")),
    ]
    answer = Answer()
    for delta in deltas:
        answer.add(delta)
    whole = CompletionReply("m", n=1, include_usage=False).whole([answer])
    assert (
        b'"tokens":["ab","bytes:\\\\xc3","bytes:\\\\xa9","!"],"token_logprobs":[-0.5,-0.5,-0.5,-0.5],"top_logprobs":'
        b'[{"ab":-0.5,"x":-2.0},{"bytes:\\\\xc3":-0.5,"bytes:\\\\xff":-9999.0},{"bytes:\\\\xa9":-0.5},{"!":-0.5}],'
        b'"text_offset":[0,2,2,3]'
    ) in whole


class Broken:
    """Work that raises what no `Work` may raise, behind its first event."""

    async def run(self, request: Request) -> Events:
        yield Accepted(request.id, 3)
        await asyncio.sleep(0.02)
        raise OSError(24, "Too many open files")


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
async def test_a_fault_of_ours_ends_every_call_and_hangs_none(names: tuple[str, ...]) -> None:
    async with asyncio.timeout(5):
        streamed = await answered(Script(), *names, stream=True, metered=Broken())
        assert streamed == b"<ALAS internal_error"
        with pytest.raises(OSError, match="Too many open files"):
            await answered(Script(), *names, stream=False, metered=Broken())


class LostShelf(Shelf):
    """A catalogue whose disk cannot be read."""

    def is_here(self, model: str) -> bool:
        raise OSError(24, "Too many open files")


@pytest.mark.parametrize("stream", [False, True])
async def test_what_only_measures_ends_no_answer(stream: bool) -> None:
    work = Script(a=says("a", "one"), b=says("b", "two"))
    async with asyncio.timeout(5):
        body = await answered(work, "a", "b", stream=stream, metered=Metered(work, LostShelf()))
    assert body == b"ONE|TWO" or (body.endswith(b">") and b"ONE" in body and b"TWO" in body)
