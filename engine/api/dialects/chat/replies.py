"""Answers and events in the words of OpenAI's chat."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from duet.errors import DuetError
from duet.wire import Usage
from engine.api.assembly import Answer
from engine.api.shared.openai import ended, finite, usage, usage_frame
from engine.api.shared.sse import DONE, error_frame
from engine.types import Event, Finished, TextDelta, TokenLogprob

_encode = msgspec.json.encode


class ChatReply:
    """The `Dialect` of one call. `id`, `created` and `model` are in every frame, so they are encoded once."""

    def __init__(self, model: str, *, choices: int, include_usage: bool) -> None:
        self._choices, self._include_usage = choices, include_usage
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model,
        }  # fmt: skip
        self._stem = b"data: " + _encode({**self._head, "object": "chat.completion.chunk"})[:-1]
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._usages: dict[int, Usage] = {}

    def whole(self, answers: Sequence[Answer]) -> bytes:
        shown = []
        for i, answer in enumerate(answers):
            message = {"role": "assistant", "content": answer.text, "refusal": None}
            logprobs = (
                {"content": [_logprob(delta) for delta in answer.tokens], "refusal": None} if answer.tokens else None
            )
            shown.append(
                {"index": i, "message": message, "logprobs": logprobs, **ended(answer.reason, answer.repetition)}
            )
        counts = usage({i: answer.usage for i, answer in enumerate(answers)}, self._choices)
        return _encode({**self._head, "object": "chat.completion", "choices": shown, "usage": counts})

    def first_frames(self) -> bytes:
        """The role of each choice."""
        role = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._frame(role, i) for i in range(self._choices))

    def frames(self, index: int, event: Event) -> bytes:
        """A choice's tokens, and its end."""
        match event:
            case TextDelta() if event.text or event.logprob is not None:
                return self._token(event, index)
            case Finished():
                self._usages[index] = event.usage
                rest = self._frame({"content": event.text}, index) if event.text else b""
                return rest + self._frame({}, index, **ended(event.reason, event.repetition))
            case _:
                return b""

    def last_frames(self) -> bytes:
        """The usage if the client asked for it, and [DONE]."""
        return usage_frame(self._stem, self._usages, self._choices) + DONE if self._include_usage else DONE

    def error(self, error: DuetError) -> bytes:
        return error_frame(error)

    def _token(self, event: TextDelta, index: int) -> bytes:
        logprobs = b"null" if event.logprob is None else _encode({"content": [_logprob(event)], "refusal": None})
        return b"%b,\"choices\":[{\"index\":%d,\"delta\":{\"content\":%b},\"logprobs\":%b,\"finish_reason\":null}]%b" % (
            self._stem, index, _encode(event.text), logprobs, self._tail,
        )  # fmt: skip

    def _frame(self, delta: dict[str, Any], index: int, **end: Any) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **end}
        return self._stem + b',"choices":[' + _encode(choice) + b"]" + self._tail


def _logprob(delta: TextDelta) -> dict[str, Any]:
    assert delta.logprob is not None
    return {**_token_logprob(delta.logprob), "top_logprobs": [_token_logprob(item) for item in delta.top]}


def _token_logprob(item: TokenLogprob) -> dict[str, Any]:
    return {"token": item.token, "bytes": list(item.raw), "logprob": finite(item.logprob)}
