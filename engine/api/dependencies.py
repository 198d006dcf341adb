"""What the routes are given: the backend, and the header that reports what a request asked for in vain."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request

from engine.types import Backend


def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


BackendDep = Annotated[Backend, Depends(_backend)]


def ignored_header(extra: dict[str, Any] | None) -> dict[str, str]:
    """`X-Duet-Ignored: a, b` for fields that we do not know; nothing when there are none."""
    names = [name for name in extra or {} if name.isascii() and name.isprintable()][:32]
    return {"X-Duet-Ignored": ", ".join(name[:64] for name in names)} if names else {}
