"""What the routes are given: the backend, and the header that reports what a request asked for in vain."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from fastapi import Depends, Request

from engine.types import Backend


def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


BackendDep = Annotated[Backend, Depends(_backend)]


def ignored_header(fields: Iterable[str]) -> dict[str, str]:
    """`X-Duet-Ignored: a, b` for fields that had no effect; nothing when there are none."""
    names = [name if name.isascii() and name.isprintable() else ascii(name) for name in fields][:32]
    return {"X-Duet-Ignored": ", ".join(name[:64] for name in names)} if names else {}
