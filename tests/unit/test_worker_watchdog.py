"""When a worker that lives is asked, and when it is given up."""

from __future__ import annotations

from engine.fleet.watchdog import MOST_SECONDS_A_CHECK, Watchdog


class Checks:
    """A check every two seconds."""

    def __init__(self, timeout_seconds: float) -> None:
        self.watchdog, self.now = Watchdog(timeout_seconds), 1000.0
        self.watchdog.check(self.now, has_requests=False)

    def times(self, count: int, *, has_requests: bool = True, seconds: float = 2.0) -> list[str]:
        verdicts = []
        for _ in range(count):
            self.now += seconds
            verdicts.append(self.watchdog.check(self.now, has_requests=has_requests))
        return verdicts


def test_one_that_has_requests_and_says_nothing_is_asked_and_then_lost() -> None:
    assert Checks(6.0).times(5) == ["ask", "well", "well", "lost", "ask"]


def test_any_message_begins_anew() -> None:
    checks = Checks(6.0)
    assert checks.times(3) == ["ask", "well", "well"]
    checks.watchdog.note_message()
    assert checks.times(4) == ["well", "ask", "well", "well"]


def test_an_idle_one_may_be_silent() -> None:
    checks = Checks(6.0)
    assert checks.times(100, has_requests=False) == ["well"] * 100
    assert checks.times(1) == ["ask"], "its silence before the request does not count"


def test_once_asked_it_owes_a_message_although_its_requests_have_left() -> None:
    checks = Checks(6.0)
    assert checks.times(1) == ["ask"]
    assert checks.times(3, has_requests=False) == ["well", "well", "lost"]


def test_an_engine_that_stood_still_blames_nobody() -> None:
    checks = Checks(6 * MOST_SECONDS_A_CHECK)
    assert checks.times(1) == ["ask"]
    assert checks.times(3, seconds=3600.0) == ["well"] * 3


def test_zero_seconds_is_never() -> None:
    assert Checks(0.0).times(1000) == ["well"] * 1000
