"""Keywords (hotwords) of a transcription as clients send them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from duet.errors import InvalidRequest
from speech.text import read

MAX_KEYWORDS, MAX_KEYWORD_CHARACTERS = 500, 64
_BETWEEN = re.compile("[,，、\n\t]")


def parse_keywords(given: Sequence[str], *, name: str = "keywords") -> tuple[str, ...]:
    """Repeated fields, one field with commas, tabs or lines, or a JSON list; each keyword once. Raises `InvalidRequest` for the
    field `name`."""
    words: list[str] = []
    for item in (read(item, name=name).strip() for item in given):
        words += _listed(item, name) if item.startswith("[") else _BETWEEN.split(item)
    cleaned = tuple(dict.fromkeys(" ".join(word.split()) for word in words if word.strip()))
    if len(cleaned) > MAX_KEYWORDS or any(len(word) > MAX_KEYWORD_CHARACTERS for word in cleaned):
        raise InvalidRequest(f"at most {MAX_KEYWORDS} {name} of {MAX_KEYWORD_CHARACTERS} characters", param=name)
    return cleaned


def _listed(item: str, name: str) -> list[str]:
    try:
        words = json.loads(item)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{name} is no JSON list", param=name) from error
    if not all(isinstance(word, str | int | float) and not isinstance(word, bool) for word in words):
        raise InvalidRequest(f"{name} is a list of words", param=name)
    return [read(str(word), name=name) for word in words]
