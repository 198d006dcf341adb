"""What every request to a language model has in common. The transcript is data between markers, and nothing in it is an
instruction. The answer is one JSON object."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

Messages = list[dict[str, str]]
Line = tuple[str, str]
"""(segment id, text)"""


def as_data(text: str) -> str:
    """Text of a transcript for a prompt, on one line. A speaker must not be able to close the markers."""
    return re.sub(r"\s+", " ", text.replace("<", "‹").replace(">", "›"))


def closed_object(properties: dict[str, Any], *, optional: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON schema of an object with these properties and no others."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


@dataclass(frozen=True)
class Answer:
    """The JSON object of an answer. `cut`: the answer ended before it; of what was not complete only the beginning is there."""

    found: dict[str, Any]
    cut: bool = False

    def all(self, name: str) -> list[Any]:
        """The list `name`; the cut may have gone through its last item."""
        items = self.found.get(name, [])
        if not isinstance(items, list):
            raise ValueError(f"{name} is no list")  # noqa: TRY004 - one error for every wrong form
        return items

    def whole(self, name: str) -> list[Any]:
        """Its complete items."""
        return self.all(name)[:-1] if self.cut else self.all(name)


def json_answer(answer: str) -> Answer:
    """The JSON object of an answer, which may have a code fence or a thought around it, and may be cut. Raises ValueError."""
    answer = re.sub(r"<think>.*?(?:</think>|$)", "", answer, flags=re.DOTALL)
    start, end = answer.find("{"), answer.rfind("}")
    if start < 0:
        raise ValueError("the answer has no JSON object")
    with contextlib.suppress(ValueError, RecursionError):
        return Answer(_object(json.loads(answer[start : end + 1])))
    # Whatever ended within the last item makes the whole answer no JSON: the items before it are complete.
    found = _object(from_json(answer[start:], allow_partial=True))
    if not found:
        raise ValueError("the answer ends where it begins")
    # A brace at the end completes the last item, so the beginning of another one takes the blame.
    if (whole := re.sub(r"[\s,\]]+$", "", answer[start:])).endswith("}"):
        with contextlib.suppress(ValueError):
            found = _object(from_json(whole + ", {", allow_partial=True))
    return Answer(found, cut=True)


def _object(parsed: Any) -> dict[str, Any]:
    if not isinstance(parsed, dict):
        raise ValueError("the answer is no JSON object")  # noqa: TRY004 - one error for every wrong form
    return parsed
