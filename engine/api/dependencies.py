"""What the routes share: the three ports, and the headers of an answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, get_args

from fastapi import Depends, Request

from duet.errors import InvalidRequest
from engine.types import CacheNote, ModelInfo, Models, Operators, Priority, Work


def _work(request: Request) -> Work:
    work: Work = request.app.state.work
    return work


def _models(request: Request) -> Models:
    models: Models = request.app.state.models
    return models


def _operators(request: Request) -> Operators:
    operators: Operators = request.app.state.operators
    return operators


WorkDep = Annotated[Work, Depends(_work)]
ModelsDep = Annotated[Models, Depends(_models)]
OperatorsDep = Annotated[Operators, Depends(_operators)]


def answer_headers(model: ModelInfo, ignored: Iterable[str] = ()) -> dict[str, str]:
    """What OpenAI's bodies have no place for: `X-Duet-Ignored: a, b` names fields that had no effect, and
    `X-Duet-Demonstration: true` says that a demonstration model answers."""
    headers = {"X-Duet-Demonstration": "true"} if model.demonstration else {}
    names = [name if name.isascii() and name.isprintable() else ascii(name) for name in ignored][:32]
    return headers | ({"X-Duet-Ignored": ", ".join(name[:64] for name in names)} if names else {})


def cache_header(note: CacheNote) -> dict[str, str]:
    """`X-Duet-Cache: tokens=606; tier=ram; miss=diverged_at(606, user)`: what the lookup found of the prompt, and why no
    more. `usage` has what was really restored, which may be more when another request had the same beginning meanwhile."""
    parts = [f"tokens={note.tokens}"]
    parts += [f"tier={note.tier}"] if note.tier else []
    parts += [f"miss={note.reason}"] if note.reason else []
    return {"X-Duet-Cache": "; ".join(parts)}


def tenant_of(request: Request) -> str:
    """Whose request this is, by its key."""
    return str(request.scope["state"]["tenant"])


def priority_of(request: Request) -> Priority:
    """The class that the header `X-Duet-Priority` names. Raises `InvalidRequest`."""
    given = request.headers.get("x-duet-priority", "normal").strip().lower()
    for known in get_args(Priority):
        if given == known:
            return known  # type: ignore[no-any-return]
    raise InvalidRequest(f"{given[:32]!r} is none of {', '.join(get_args(Priority))}", param="X-Duet-Priority")
