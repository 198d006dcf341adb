"""What every request to a language model has in common. The transcript is data between markers, and nothing in it is an
instruction. The answer is one JSON object."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

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


def json_object(answer: str) -> dict[str, Any]:
    """The JSON object of an answer, which may have a code fence or a thought around it. Raises ValueError."""
    answer = re.sub(r"<think>.*?</think>", "", answer, flags=re.DOTALL)
    start, end = answer.find("{"), answer.rfind("}")
    if start < 0 or end < start:
        raise ValueError("the answer has no JSON object")
    parsed = json.loads(answer[start : end + 1])
    if not isinstance(parsed, dict):
        raise ValueError("the answer is no JSON object")  # noqa: TRY004 - one error for every wrong form
    return parsed
