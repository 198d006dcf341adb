"""What the routes share: the backend, and the headers of an answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from fastapi import Depends, Request

from engine.types import Backend, ModelInfo


def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


BackendDep = Annotated[Backend, Depends(_backend)]


def answer_headers(model: ModelInfo, ignored: Iterable[str] = ()) -> dict[str, str]:
    """What OpenAI's bodies have no place for: `X-Duet-Ignored: a, b` names fields that had no effect, and
    `X-Duet-Demonstration: true` says that a demonstration model answers."""
    headers = {"X-Duet-Demonstration": "true"} if model.demonstration else {}
    names = [name if name.isascii() and name.isprintable() else ascii(name) for name in ignored][:32]
    return headers | ({"X-Duet-Ignored": ", ".join(name[:64] for name in names)} if names else {})
