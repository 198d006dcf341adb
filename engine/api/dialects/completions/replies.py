"""Answers and events in the words of OpenAI's completions."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from duet.errors import DuetError
from duet.wire import Usage
from engine.api.assembly import Answer
from engine.api.shared.openai import ended, finite, usage, usage_frame
from engine.api.shared.sse import DONE, error_frame
from engine.types import Event, Finished, TextDelta, TokenLogprob

_encode = msgspec.json.encode


class CompletionReply:
    """The `Dialect` of one call. `n` choices in a row belong to one prompt."""

    def __init__(self, model: str, *, n: int, include_usage: bool) -> None:
        self._n, self._include_usage = n, include_usage
        self._head: dict[str, Any] = {
            "id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()), "model": model,
        }  # fmt: skip
        self._stem = b"data: " + _encode(self._head)[:-1]
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._usages: dict[int, Usage] = {}
        self._shown: Counter[int] = Counter()
        """How many characters of each choice were shown."""

    def whole(self, answers: Sequence[Answer]) -> bytes:
        shown = [
            {
                "index": i,
                "text": answer.text,
                "logprobs": _logprobs(answer.tokens, 0) if answer.tokens else None,
                **ended(answer.reason, answer.repetition),
            }
            for i, answer in enumerate(answers)
        ]
        counts = usage({i: answer.usage for i, answer in enumerate(answers)}, self._n)
        return _encode({**self._head, "choices": shown, "usage": counts})

    def first_frames(self) -> bytes:
        return b""

    def frames(self, index: int, event: Event) -> bytes:
        """A choice's text, and its end."""
        match event:
            case TextDelta() if event.text or event.logprob is not None:
                logprobs = None if event.logprob is None else _logprobs([event], self._shown[index])
                self._shown[index] += len(event.text)
                return self._frame(index, event.text, logprobs=logprobs)
            case Finished():
                self._usages[index] = event.usage
                return self._frame(index, event.text, **ended(event.reason, event.repetition))
            case _:
                return b""

    def last_frames(self) -> bytes:
        """The usage if the client asked for it, and [DONE]."""
        return usage_frame(self._stem, self._usages, self._n) + DONE if self._include_usage else DONE

    def error(self, error: DuetError) -> bytes:
        return error_frame(error)

    def _frame(self, index: int, text: str, **more: Any) -> bytes:
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None, **more}
        return self._stem + b',"choices":[' + _encode(choice) + b"]" + self._tail


def _logprobs(deltas: Iterable[TextDelta], offset: int) -> dict[str, Any]:
    """OpenAI's older shape: four lists with one item for each token. `text_offset` is how many characters of the choice's text
    were shown before the token, beginning at `offset`. `top_logprobs` always includes the token itself, so it may have one item
    more than was asked for."""
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for delta in deltas:
        if delta.logprob is not None:
            found["tokens"].append(_name(delta.logprob))
            found["token_logprobs"].append(finite(delta.logprob.logprob))
            found["top_logprobs"].append({_name(item): finite(item.logprob) for item in (*delta.top, delta.logprob)})
            found["text_offset"].append(offset)
        offset += len(delta.text)
    return found


def _name(token: TokenLogprob) -> str:
    """The token's text. A token that is only a part of a character is named `bytes:\\xe4\\xbd`: the keys of
    `top_logprobs` have to differ."""
    try:
        return token.raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.raw)
