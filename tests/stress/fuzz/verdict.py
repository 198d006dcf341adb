"""What may answer a damaged file or folder: a right result, or an error of ours that says what is wrong."""

from __future__ import annotations

import json
from typing import Any

OURS = frozenset({"message", "type", "param", "code"})
_LEAKS = ("an unexpected error", "Traceback", "There was an error parsing the body", "Internal Server Error")


def of_transcription(status: int, body: bytes) -> str | None:
    """None when the answer is right; otherwise what is wrong with it."""
    if status != 200:
        return of_error(status, body)
    try:
        found = json.loads(body)
        duration, segments = found["duration"], found["segments"]
        if not isinstance(found["text"], str) or not 0 <= duration < 7200:
            return f"a transcript without text or with a duration of {duration}"
        for segment in segments:
            if not 0 <= segment["start"] <= segment["end"] <= duration + 0.05:
                return f"a segment from {segment['start']} to {segment['end']} of {duration} s"
    except (ValueError, KeyError, TypeError) as error:
        return f"no transcript: {error!r}"
    return None


def of_completion(status: int, body: bytes) -> str | None:
    """Like `of_transcription`, for a chat completion."""
    if status != 200:
        return of_error(status, body)
    try:
        choice = json.loads(body)["choices"][0]
        return None if choice["finish_reason"] in ("stop", "length") else f"finished by {choice['finish_reason']}"
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return f"no completion: {error!r}"


def of_embedding(status: int, body: bytes) -> str | None:
    """Like `of_transcription`, for one embedding."""
    if status != 200:
        return of_error(status, body)
    try:
        vector = json.loads(body)["data"][0]["embedding"]
        return None if vector and all(abs(number) < 1e6 for number in vector) else "an embedding without sense"
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return f"no embedding: {error!r}"


def of_error(status: int, body: bytes, *, named: str | None = None) -> str | None:
    """`named`: a model folder may also be answered by 503 or 507 when the message has this name."""
    try:
        error: dict[str, Any] = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return f"{status} without our error: {body[:120]!r}"
    message = str(error.get("message"))
    if not set(error) >= OURS or any(leak in message for leak in _LEAKS):
        return f"{status} that says nothing of use: {message[:160]}"
    if 400 <= status < 500 or (named is not None and status in (503, 507) and named in message):
        return None
    return f"{status} {error['code']}: {message[:160]}"
