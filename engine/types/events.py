"""What comes back for a request. Every event crosses the Unix socket as msgpack.

The last event of a request is exactly one of `Finished`, `Failed` and the subclasses of `Result`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Literal, TypeVar

import msgspec

from duet.errors import DuetError, Internal, from_code
from duet.wire import Transcript, Usage

FinishReason = Literal["stop", "length"]


class CacheNote(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the KV cache had of a prompt: `tokens`, from `tier` ("ram", "ssd" or ""). `reason` says why it was not more: "" when
    all of it was there, else `cold`, `diverged_at(token, role)`, `evicted`, `layout`, `quota`, `corrupt` or `disabled`."""

    tokens: int = 0
    tier: str = ""
    reason: str = ""


class TokenLogprob(msgspec.Struct, frozen=True):
    """`token` is the token's own text (lossy for part of a character), `raw` its exact bytes, `logprob` is natural."""

    token: str
    raw: bytes
    logprob: float


class Accepted(msgspec.Struct, frozen=True, omit_defaults=True, tag="accepted"):
    """The worker took the request; from here on the HTTP status is 200. `max_tokens` is the bound of the answer where the context
    has less room than the request asked for. `ignored` are fields of the request that the model has no place for."""

    id: str
    prompt_tokens: int
    cache: CacheNote = CacheNote()
    max_tokens: int | None = None
    ignored: tuple[str, ...] = ()


class TextDelta(msgspec.Struct, frozen=True, omit_defaults=True, tag="delta"):
    """`tokens` more generated tokens, and the text that can be shown because of them: "" while a character or a possible stop
    string is incomplete. `logprob` and `top` are present when the request asked for them."""

    id: str
    text: str
    logprob: TokenLogprob | None = None
    top: tuple[TokenLogprob, ...] = ()
    tokens: int = 1


class ThoughtDelta(msgspec.Struct, frozen=True, omit_defaults=True, tag="thought"):
    """`tokens` more generated tokens of what the model thinks before its answer, and their text: "" while it may be the marker
    that closes the thought."""

    id: str
    text: str
    tokens: int = 1


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The answer is complete. `text` was held back until now as a possible stop string. `repetition`: the answer repeated one
    piece without end and was cut off."""

    id: str
    reason: FinishReason
    usage: Usage
    text: str = ""
    repetition: bool = False


class Failed(msgspec.Struct, frozen=True, omit_defaults=True, tag="failed"):
    """The request failed. `code` names a class of `duet.errors`."""

    id: str
    code: str
    message: str
    param: str | None = None
    retry_after_seconds: int | None = None

    @classmethod
    def of(cls, request_id: str, error: DuetError) -> Failed:
        return cls(request_id, error.code, error.message, error.param, error.retry_after_seconds)

    def as_error(self) -> DuetError:
        return from_code(self.code, self.message, param=self.param, retry_after_seconds=self.retry_after_seconds)


class Result(msgspec.Struct, frozen=True):
    """The whole answer of a request that has only one event."""

    id: str


class Embedded(Result, frozen=True, tag="embedded"):
    """`vectors` is float32 little-endian, row-major, shape [len(inputs), dimensions], L2-normalised."""

    vectors: bytes
    dimensions: int
    prompt_tokens: int


class Transcribed(Result, frozen=True, tag="transcribed"):
    transcript: Transcript


Event = Accepted | ThoughtDelta | TextDelta | Finished | Failed | Embedded | Transcribed
Events = AsyncGenerator[Event, None]
"""The events of one request. Closing it cancels the request."""

R = TypeVar("R", bound=Result)


def is_last(event: Event) -> bool:
    """Whether the request of this event ends with it."""
    return isinstance(event, (Finished, Failed, Result))


def raise_failure(event: Event) -> None:
    """Raise the error that the request failed with, if that is what `event` says."""
    if isinstance(event, Failed):
        raise event.as_error()


async def only(events: Events, kind: type[R]) -> R:
    """The one answer of a request. Raises the `DuetError` that the request failed with."""
    async with contextlib.aclosing(events):
        async for event in events:
            raise_failure(event)
            if isinstance(event, kind):
                return event
    raise Internal(f"the request ended without {kind.__name__}")
