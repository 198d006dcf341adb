"""The caller's own deadline: whatever an answer waits for, a download and a load included, it waits no longer."""

from __future__ import annotations

import math
import time

from fastapi import Request

from duet.errors import InvalidRequest

MAX_DEADLINE_SECONDS = 86_400.0


def deadline_of(request: Request) -> float | None:
    """When the caller wants no answer any more, on the monotonic clock: the header `X-Duet-Deadline`, in seconds from now
    on. None without it. Raises `InvalidRequest`."""
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
