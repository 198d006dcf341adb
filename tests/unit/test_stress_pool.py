"""The pool benchmark's bookkeeping: an error in a stream counts like one with a status."""

from __future__ import annotations

import httpx
import pytest

from tests.stress.pool import Observations, _ask

REFUSED = '"message": "full", "type": "server_error", "param": "model", "code": "memory_full"'


@pytest.mark.parametrize(("more", "missing"), [("", 1), (', "retry_after": 5', 0)])
async def test_a_refusal_in_a_stream_must_say_when_to_come_back(more: str, missing: int) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=f': loading\n\ndata: {{"error": {{{REFUSED}{more}}}}}\n\n')

    seen = Observations()
    async with httpx.AsyncClient(base_url="http://engine", transport=httpx.MockTransport(answer)) as client:
        assert await _ask(client, {"stream": True}, {}, seen)
    assert seen.outcomes == {"503 memory_full": 1}
    assert (seen.without_retry_after, seen.unclean) == (missing, [])


def test_a_broken_answer_is_booked_with_what_tells_its_cause() -> None:
    seen = Observations()
    seen.loss(httpx.ReadTimeout("late"), {"model": "alpha", "stream": True}, "batch", 300.04)
    assert seen.unclean == ["ReadTimeout on alpha after 300.0 s (streamed, batch)"]
