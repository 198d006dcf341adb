"""Keywords (hotwords) of a transcription as clients send them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from duet.errors import InvalidRequest

MAX_KEYWORDS, MAX_KEYWORD_CHARACTERS = 500, 64


def parse_keywords(given: Sequence[str], *, name: str = "keywords") -> tuple[str, ...]:
    """Repeated fields, one field with commas or lines, or a JSON list; each keyword once. Raises `InvalidRequest` for the
    field `name`."""
    words: list[str] = []
    for item in given:
        if item.lstrip().startswith("["):
            try:
                words += [str(word) for word in json.loads(item)]
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(f"{name} is no JSON list", param=name) from error
        else:
            words += item.replace("\n", ",").split(",")
    cleaned = tuple(dict.fromkeys(word.strip() for word in words if word.strip()))
    if len(cleaned) > MAX_KEYWORDS or any(len(word) > MAX_KEYWORD_CHARACTERS for word in cleaned):
        raise InvalidRequest(f"at most {MAX_KEYWORDS} {name} of {MAX_KEYWORD_CHARACTERS} characters", param=name)
    return cleaned
