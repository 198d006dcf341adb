"""Fields that the bodies of several routes have in common.

What we act on is validated. What we know but cannot do is refused with its name. What we do not know is kept and reported in
`X-Duet-Ignored`, because real clients send it. Types are strict: `"0.5"` is not a number.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictStr, model_validator

MAX_VOCABULARY = 1 << 31


class Lenient(BaseModel):
    """Unknown fields are kept in `model_extra`. A field that is null is as one that was not sent, whatever its type: many clients
    send every field that they know."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, given: Any) -> Any:
        if isinstance(given, dict) and None in given.values():
            return {name: value for name, value in given.items() if value is not None}
        return given


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


def bounded(value: Any, *, depth: int) -> Any:
    """JSON of any shape, as a client's free-form field has it. Raises `ValueError` for more levels of lists and objects than
    `depth`."""
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    if any(isinstance(inner, (dict, list)) for inner in level):
        raise ValueError(f"is nested more than {depth} levels deep")
    return value


def empty_is_unset(value: Any) -> Any:
    """For optional texts of which an empty one asks for nothing."""
    return None if value == "" else value


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
