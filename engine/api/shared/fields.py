"""Fields that the bodies of several routes have in common.

What we act on is validated. What we know but cannot do is refused with its name. What we do not know is kept and reported in
`X-Duet-Ignored`, because real clients send it. Types are strict: `"0.5"` is not a number.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictStr

MAX_VOCABULARY = 1 << 31


class Lenient(BaseModel):
    """Unknown fields are kept in `model_extra`."""

    model_config = ConfigDict(extra="allow")


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("holds half a surrogate pair, which is no character") from error
    return text


Text = Annotated[StrictStr, AfterValidator(_encodable)]
"""Text that UTF-8 can carry. JSON can also write halves of surrogate pairs, and UTF-8 cannot."""


def _unset(value: Any) -> Any:
    if value:
        raise ValueError("is not supported yet")
    return value


Refused = Annotated[
    Any, AfterValidator(_unset), Field(description="Not supported yet: a request that needs it is refused.")
]

Inputs = tuple[str | tuple[int, ...], ...]


def as_inputs(given: Any, most: int, noun: str) -> Inputs:
    """A text, texts, token ids, or lists of token ids, as up to `most` inputs. Raises `ValueError` in which `noun` names one."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list) or not given:
        raise ValueError("a string, a list of strings, a list of token ids or a list of such lists, not empty")
    if _is_token(given[0]):
        given = [given]
    if len(given) > most:
        raise ValueError(f"{len(given)} {noun}s; a request takes {most}")
    return tuple(_as_input(item, f"{noun} {i}") for i, item in enumerate(given))


def _as_input(item: Any, place: str) -> str | tuple[int, ...]:
    if isinstance(item, str) and item:
        try:
            item.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{place} is not valid Unicode") from error
        return item
    if isinstance(item, list) and item and all(_is_token(token) for token in item):
        return tuple(item)
    raise ValueError(f"{place} is neither a text nor a list of token ids, or it is empty")


def _is_token(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool) and 0 <= item < MAX_VOCABULARY


def ignored(holders: Iterable[tuple[BaseModel, str]]) -> list[str]:
    """Unknown fields that were sent, each once, as paths without indexes. `holders` are objects with their paths, "" for the
    body itself."""
    names = []
    for holder, place in holders:
        for name, value in (holder.model_extra or {}).items():
            if value is not None and (value != [] or not place):
                names.append(f"{place}.{name}" if place else name)
    return list(dict.fromkeys(names))
