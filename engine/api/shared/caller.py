"""Who asks, how urgent it is, and until when an answer is of use."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import get_args

from fastapi import Request

from duet.errors import InvalidRequest
from engine.types import Priority

MAX_DEADLINE_SECONDS = 86_400.0


@dataclass(frozen=True)
class Caller:
    """`tenant` is whose request this is, by its key. `deadline` is on the monotonic clock; None: the caller waits."""

    tenant: str
    priority: Priority
    deadline: float | None


def caller_of(request: Request) -> Caller:
    """The caller, by the headers `X-Duet-Priority` and `X-Duet-Deadline`. Raises `InvalidRequest` naming the header."""
    return Caller(str(request.scope["state"]["tenant"]), _priority(request), _deadline(request))


def _priority(request: Request) -> Priority:
    given = request.headers.get("x-duet-priority", "normal").strip().lower()
    for known in get_args(Priority):
        if given == known:
            return known  # type: ignore[no-any-return]
    raise InvalidRequest(f"{given[:32]!r} is none of {', '.join(get_args(Priority))}", param="X-Duet-Priority")


def _deadline(request: Request) -> float | None:
    """The header counts seconds from now on."""
    given = request.headers.get("x-duet-deadline")
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_DEADLINE_SECONDS:
        raise InvalidRequest(f"a number of seconds up to {MAX_DEADLINE_SECONDS:.0f}", param="X-Duet-Deadline")
    return time.monotonic() + seconds
