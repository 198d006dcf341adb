"""`POST /v1/chat/completions`: OpenAI's dialect in, our requests out, events framed or collected."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, assert_never

import msgspec
from fastapi import APIRouter, Request, Response

from duet.errors import DuetError, InvalidRequest
from duet.http.disconnect import unless_gone
from duet.wire import Usage
from engine.api.deadlines import deadline_of
from engine.api.dependencies import (
    ModelsDep,
    WorkDep,
    answer_headers,
    cache_header,
    priority_of,
    tenant_of,
)
from engine.api.images import load_image
from engine.api.schemas.chat import ChatCompletionRequest, ContentPart, ignored_fields
from engine.api.schemas.structure import structure_of
from engine.api.sse import DONE, EventStream, error_frame
from engine.types import (
    Accepted,
    CacheNote,
    Event,
    Events,
    Failed,
    Finished,
    GenerationRequest,
    Message,
    ModelInfo,
    Part,
    Result,
    SamplingParams,
    TextDelta,
    ThoughtDelta,
    TokenLogprob,
    Work,
)

router = APIRouter()

PROMISE_AFTER_SECONDS = 3.0
"""A stream waits this long for the worker's word before its status becomes 200 and comments keep it alive."""
MAX_IMAGES = 32
_RESERVED_OPTIONS = frozenset({"messages", "tokenize", "add_generation_prompt", "chat_template", "conversation"})
_encode = msgspec.json.encode


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatCompletionRequest, request: Request, work: WorkDep, models: ModelsDep) -> Response:
    """Chat with text and images, whole or streamed. Fields without effect are named in the header X-Duet-Ignored."""
    model = models.resolve(body.model)
    priority, deadline = priority_of(request), deadline_of(request)
    asked = [
        msgspec.structs.replace(one, priority=body.priority or priority, deadline=deadline)
        for one in await unless_gone(request, to_requests(body, model, tenant_of(request)))
    ]
    answer = Answer(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), model.id)
    headers = answer_headers(model, ignored_fields(body))
    if not body.stream:
        choices = await unless_gone(request, _collect_all(work, asked))
        headers |= cache_header(choices[0].cache)
        return Response(answer.complete(choices), media_type="application/json", headers=headers)
    events = fan_in(work, asked)
    first = await _first_event(events)
    if first.done() and isinstance(event := first.result(), Accepted):
        headers |= cache_header(event.cache)
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    frames = answer.frames(first, events, [one.id for one in asked], include_usage=include_usage)
    return EventStream(
        frames, waiting=lambda: models.progress(model.id), close=lambda: _closed(first, events), headers=headers
    )


# The request ------------------------------------------------------------------------------------------------------


async def to_requests(body: ChatCompletionRequest, model: ModelInfo, tenant: str) -> list[GenerationRequest]:
    """One `GenerationRequest` a choice. `n` choices of one seed get seeds in a row."""
    messages = with_ocr_prompt(await _messages(body), model.ocr_prompt)
    sampling = _sampling(body, model)
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise InvalidRequest("max_tokens and max_completion_tokens differ", param="max_completion_tokens")
    options = _template_options(body)
    structure = structure_of(body)
    stem = secrets.token_hex(8)
    return [
        GenerationRequest(
            id=f"{stem}-{i}",
            model=model.id,
            messages=messages,
            sampling=sampling
            if sampling.seed is None
            else msgspec.structs.replace(sampling, seed=_seed(sampling.seed, i)),
            max_tokens=body.max_completion_tokens or body.max_tokens or model.max_tokens,
            stop=(*(body.stop or ()), *model.stops),
            template_options=options,
            tenant=tenant,
            store=body.store is not False,
            structure=structure,
            stop_on_repetition="ocr" in model.roles if body.stop_on_repetition is None else body.stop_on_repetition,
        )
        for i in range(body.n or 1)
    ]


def _seed(seed: int, choice: int) -> int:
    """Seeds in a row, as 63 bits: what fits a signed integer of the wire."""
    return (seed + choice) % (1 << 63)


def _template_options(body: ChatCompletionRequest) -> dict[str, Any]:
    options = dict(body.chat_template_kwargs or {})
    if reserved := _RESERVED_OPTIONS & set(options):
        raise InvalidRequest(f"{', '.join(sorted(reserved))} cannot be set", param="chat_template_kwargs")
    try:
        msgspec.msgpack.encode(options)
    except (OverflowError, UnicodeEncodeError, RecursionError) as error:
        raise InvalidRequest(f"cannot be passed on: {error}", param="chat_template_kwargs") from error
    if body.enable_thinking is not None:
        options["enable_thinking"] = body.enable_thinking
    return options


def _sampling(body: ChatCompletionRequest, model: ModelInfo) -> SamplingParams:
    """The request's parameters, else the card's, else OpenAI's defaults."""
    names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    given = {name: getattr(body, name) for name in names if getattr(body, name) is not None}
    values: dict[str, Any] = {**model.defaults, **given}
    return SamplingParams(
        **values,
        seed=body.seed,
        logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
        logprobs=bool(body.logprobs),
        top_logprobs=body.top_logprobs or 0,
    )


async def _messages(body: ChatCompletionRequest) -> tuple[Message, ...]:
    images = sum(part.type == "image_url" for message in body.messages for part in message.content or ())
    if images > MAX_IMAGES:
        raise InvalidRequest(f"{images} images; a request takes {MAX_IMAGES}", param="messages")
    messages = []
    for i, message in enumerate(body.messages):
        places = (f"messages[{i}].content[{j}]" for j in range(len(message.content or ())))
        parts = await asyncio.gather(*map(_part, message.content or (), places))
        messages.append(Message(message.role, tuple(parts), message.name))
    return tuple(messages)


async def _part(part: ContentPart, place: str) -> Part:
    if part.image_url is not None and part.type == "image_url":
        return Part("image", image=await load_image(part.image_url.url, f"{place}.image_url.url"))
    return Part("text", text=part.text or "")


def with_ocr_prompt(messages: tuple[Message, ...], prompt: str | None) -> tuple[Message, ...]:
    """An OCR model reads a picture sent without words by the words it was trained on."""
    last = messages[-1]
    wordless = last.role == "user" and not any(part.type == "text" and part.text.strip() for part in last.parts)
    if prompt is None or not wordless:
        return messages
    return (*messages[:-1], msgspec.structs.replace(last, parts=(*last.parts, Part("text", text=prompt))))


# Events -----------------------------------------------------------------------------------------------------------


def fan_in(work: Work, asked: list[GenerationRequest]) -> Events:
    """Events of all choices as they come; `id` says which choice one belongs to. `Failed` ends its choice alone. Closing the
    generator cancels every choice."""
    # One choice is the usual case. It needs no tasks and no queue, which would cost more than all else that an event costs.
    return work.run(asked[0]) if len(asked) == 1 else _merged(work, asked)


async def _merged(work: Work, asked: list[GenerationRequest]) -> Events:
    queue: asyncio.Queue[Event | None] = asyncio.Queue(maxsize=64)

    async def pump(request: GenerationRequest) -> None:
        async with contextlib.aclosing(work.run(request)) as events:
            async for event in events:
                await queue.put(event)
        await queue.put(None)

    tasks = [asyncio.create_task(pump(request), name=request.id) for request in asked]
    try:
        for _ in tasks:
            while (item := await queue.get()) is not None:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _first_event(events: Events) -> asyncio.Task[Event]:
    """The first word of the worker, which decides the HTTP status; still under way when it takes too long (a model loads)."""
    first = asyncio.ensure_future(anext(events))
    try:
        await asyncio.wait([first], timeout=PROMISE_AFTER_SECONDS)
        if first.done():
            raise_failure(first.result())
    except BaseException:
        await _closed(first, events)
        raise
    return first


async def _closed(first: asyncio.Task[Event], events: Events) -> None:
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await events.aclose()


def raise_failure(event: Event) -> None:
    """Raise if this is how a request failed."""
    if isinstance(event, Failed):
        raise event.as_error()


@dataclass
class Choice:
    """What one choice has said so far."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TextDelta] = field(default_factory=list)
    reason: str | None = None
    repetition: bool = False
    usage: Usage = field(default_factory=Usage)
    cache: CacheNote = field(default_factory=CacheNote)


async def _collect_all(work: Work, asked: list[GenerationRequest]) -> list[Choice]:
    choices = {request.id: Choice() for request in asked}
    async with contextlib.aclosing(fan_in(work, asked)) as events:
        async for event in events:
            raise_failure(event)
            _book(choices[event.id], event)
    return list(choices.values())


def _book(choice: Choice, event: Event) -> None:
    match event:
        case TextDelta():
            choice.text.append(event.text)
            if event.logprob is not None:
                choice.logprobs.append(event)
        case Finished():
            choice.text.append(event.text)
            choice.reason, choice.usage, choice.repetition = event.reason, event.usage, event.repetition
        case Accepted():
            choice.cache = event.cache
        case ThoughtDelta() | Failed() | Result():
            pass
        case _:
            assert_never(event)


# The answer -------------------------------------------------------------------------------------------------------


class Answer:
    """One completion on the wire: `id`, `created` and `model` are in every frame, so they are encoded once."""

    def __init__(self, completion_id: str, created: int, model: str) -> None:
        self._head: dict[str, Any] = {"id": completion_id, "created": created, "model": model}
        stem = _encode({**self._head, "object": "chat.completion.chunk"})
        self._stem = b"data: " + stem[:-1]

    def complete(self, choices: list[Choice]) -> bytes:
        shown = []
        for i, choice in enumerate(choices):
            message = {"role": "assistant", "content": "".join(choice.text), "refusal": None}
            logprobs = (
                {"content": [_logprob(delta) for delta in choice.logprobs], "refusal": None}
                if choice.logprobs
                else None
            )
            ended = {"finish_reason": choice.reason} | stop_reason(repetition=choice.repetition)
            shown.append({"index": i, "message": message, "logprobs": logprobs, **ended})
        usage = _usage([choice.usage for choice in choices])
        return _encode({**self._head, "object": "chat.completion", "choices": shown, "usage": usage})

    async def frames(
        self,
        first: asyncio.Task[Event],
        events: Events,
        ids: list[str],
        *,
        include_usage: bool,
    ) -> AsyncGenerator[bytes, None]:
        """SSE frames: per choice the role, its tokens, its end; then the usage if asked for; then [DONE]."""
        usages: list[Usage] = []
        indexes = {name: i for i, name in enumerate(ids)}
        tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        try:
            for i in range(len(ids)):
                yield self._frame({"role": "assistant", "content": "", "refusal": None}, i, tail)
            async with contextlib.aclosing(_chain(first, events)) as chained:
                async for event in chained:
                    raise_failure(event)
                    index = indexes[event.id]
                    match event:
                        case TextDelta() if event.text or event.logprob is not None:
                            yield self._token(event, index, tail)
                        case Finished():
                            if event.text:
                                yield self._frame({"content": event.text}, index, tail)
                            yield self._frame({}, index, tail, reason=event.reason, repetition=event.repetition)
                            usages.append(event.usage)
                        case _:
                            pass
            if include_usage:
                yield self._stem + b',"choices":[],"usage":' + _encode(_usage(usages)) + b"}\n\n"
            yield DONE
        except DuetError as error:
            yield error_frame(error)

    def _token(self, event: TextDelta, index: int, tail: bytes) -> bytes:
        logprobs = b"null" if event.logprob is None else _encode({"content": [_logprob(event)], "refusal": None})
        return b"%b,\"choices\":[{\"index\":%d,\"delta\":{\"content\":%b},\"logprobs\":%b,\"finish_reason\":null}]%b" % (
            self._stem, index, _encode(event.text), logprobs, tail,
        )  # fmt: skip

    def _frame(
        self, delta: dict[str, Any], index: int, tail: bytes, *, reason: str | None = None, repetition: bool = False
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        choice |= stop_reason(repetition=repetition)
        return self._stem + b',"choices":[' + _encode(choice) + b"]" + tail


def stop_reason(*, repetition: bool) -> dict[str, str]:
    """vLLM's field beside `finish_reason`, where that says too little."""
    return {"stop_reason": "repetition"} if repetition else {}


async def _chain(first: asyncio.Task[Event], events: Events) -> Events:
    yield await first
    async for item in events:
        yield item


def _usage(parts: list[Usage]) -> dict[str, Any]:
    """The prompt counts once, as OpenAI counts it for `n` choices."""
    prompt = max((part.prompt_tokens for part in parts), default=0)
    completion = sum(part.completion_tokens for part in parts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": max((part.cached_tokens for part in parts), default=0)},
    }


def _logprob(delta: TextDelta) -> dict[str, Any]:
    assert delta.logprob is not None
    return {**_token_logprob(delta.logprob), "top_logprobs": [_token_logprob(item) for item in delta.top]}


def _token_logprob(item: TokenLogprob) -> dict[str, Any]:
    return {"token": item.token, "bytes": list(item.raw), "logprob": max(item.logprob, -9999.0)}
