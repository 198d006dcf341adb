"""When a worker that lives is asked, and when it is given up."""

from __future__ import annotations

from engine.fleet.watchdog import MOST_SECONDS_A_LOOK, Watchdog


class Looking:
    """Looks every two seconds."""

    def __init__(self, timeout_seconds: float) -> None:
        self.watchdog, self.now = Watchdog(timeout_seconds), 1000.0
        self.watchdog.look(self.now, has_requests=False)

    def look(self, times: int, *, has_requests: bool = True, seconds: float = 2.0) -> list[str]:
        verdicts = []
        for _ in range(times):
            self.now += seconds
            verdicts.append(self.watchdog.look(self.now, has_requests=has_requests))
        return verdicts


def test_one_that_has_requests_and_says_nothing_is_asked_and_then_lost() -> None:
    assert Looking(6.0).look(5) == ["ask", "well", "well", "lost", "ask"]


def test_any_word_begins_anew() -> None:
    looking = Looking(6.0)
    assert looking.look(3) == ["ask", "well", "well"]
    looking.watchdog.note_word()
    assert looking.look(4) == ["well", "ask", "well", "well"]


def test_an_idle_one_may_be_silent() -> None:
    looking = Looking(6.0)
    assert looking.look(100, has_requests=False) == ["well"] * 100
    assert looking.look(1) == ["ask"], "its silence before the request does not count"


def test_once_asked_it_owes_a_word_although_its_requests_have_left() -> None:
    looking = Looking(6.0)
    assert looking.look(1) == ["ask"]
    assert looking.look(3, has_requests=False) == ["well", "well", "lost"]


def test_an_engine_that_stood_still_blames_nobody() -> None:
    looking = Looking(6 * MOST_SECONDS_A_LOOK)
    assert looking.look(1) == ["ask"]
    assert looking.look(3, seconds=3600.0) == ["well"] * 3


def test_zero_seconds_is_never() -> None:
    assert Looking(0.0).look(1000) == ["well"] * 1000
