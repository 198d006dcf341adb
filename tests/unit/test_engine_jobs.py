"""Whose step is next among the jobs of a worker. No MLX, and the clock is a number."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest

from engine.types import Priority
from engine.worker.scheduler.jobs import Jobs, Queued
from engine.worker.scheduler.order import AGEING_SECONDS


@dataclass
class Work:
    id: str
    priority: Priority = "normal"
    tenant: str = ""

    def step(self) -> None:
        raise AssertionError("whose step it is is decided without any")


def anyone(one: Queued[Any]) -> bool:
    return True


def turns(jobs: Jobs[Any], number: int, now: float = 0.0) -> str:
    """Names of the jobs that have the next turns."""
    found = [jobs.next(now, anyone) for _ in range(number)]
    return " ".join(job.id for job in found if job is not None)


def queued(*works: Work, at: float = 0.0) -> Jobs[Any]:
    jobs = Jobs[Any]()
    for work in works:
        jobs.add(work, at)
    return jobs


def test_jobs_take_turns_in_order_of_arrival_and_who_comes_later_waits_for_one() -> None:
    jobs = queued(Work("a"), Work("b"))
    assert turns(jobs, 1) == "a"
    jobs.add(Work("c"), 0.0)
    assert turns(jobs, 6) == "b a c b a c"


def test_the_better_priority_goes_first() -> None:
    jobs = queued(Work("b", "batch"), Work("n"), Work("i", "interactive"))
    assert turns(jobs, 3) == "i i i"
    jobs.forget("i")
    assert turns(jobs, 3) == "n n n"


def test_a_tenant_with_one_job_has_as_many_turns_as_one_with_many() -> None:
    jobs = queued(*(Work(f"a{i}", tenant="a") for i in range(5)), Work("b", tenant="b"))
    assert turns(jobs, 6) == "a0 b a1 b a2 b"


def test_what_may_not_have_a_turn_is_passed_over() -> None:
    jobs = queued(Work("held", "batch"), Work("free"))
    held = jobs.next(0.0, lambda one: one.priority != "batch")
    assert held is not None
    assert held.id == "free"
    jobs.forget("free")
    assert jobs.next(0.0, lambda one: one.priority != "batch") is None
    assert not jobs.ready(lambda one: one.priority != "batch")
    assert [one.job.id for one in jobs.ready(anyone)] == ["held"]


def test_a_removed_job_has_no_turn_and_an_unknown_one_is_ended_already() -> None:
    jobs = queued(Work("a"))
    jobs.forget("a")
    jobs.forget("a")
    assert len(jobs) == 0
    assert jobs.next(0.0, anyone) is None


@pytest.mark.parametrize("name", ["normal", "batch"])
def test_a_job_that_has_waited_too_long_has_every_second_turn_until_it_ends(name: Priority) -> None:
    jobs, now = queued(Work("old", name)), AGEING_SECONDS[name]
    numbers = count()
    seen: Counter[str] = Counter()

    def stream(at: float) -> None:
        """Of short interactive jobs: there is always one."""
        jobs.add(Work(f"i{next(numbers)}", "interactive"), at)
        job = jobs.next(at, anyone)
        assert job is not None
        seen[job.id if job.id == "old" else "interactive"] += 1
        if job.id != "old":
            jobs.forget(job.id)

    for tick in range(100):
        stream(now * tick / 101)
    assert seen == {"interactive": 100}
    for tick in range(100):
        stream(now + tick / 100)
    assert seen == {"interactive": 150, "old": 50}


def test_only_one_job_is_aged_at_a_time() -> None:
    jobs = queued(*(Work(f"b{i}", "batch") for i in range(3)), Work("i", "interactive"))
    assert turns(jobs, 6, now=AGEING_SECONDS["batch"]) == "i b0 i b0 i b0"
    jobs.forget("b0")
    assert turns(jobs, 4, now=AGEING_SECONDS["batch"]) == "i b1 i b1"


def test_a_long_job_that_has_its_turns_never_counts_as_one_that_waits() -> None:
    jobs = queued(Work("long"), Work("short"))
    for second in range(300):
        assert turns(jobs, 2, now=float(second)) == "long short"


def test_batch_work_that_is_held_keeps_nobody_from_ageing() -> None:
    def may(one: Queued[Any]) -> bool:
        return one.priority != "batch"

    late = AGEING_SECONDS["batch"]
    jobs = queued(Work("held", "batch"), Work("held too", "batch"))
    assert turns(jobs, 1, now=late) == "held"  # aged before it was held
    jobs.add(Work("normal"), late)
    jobs.add(Work("quick", "interactive"), late)
    later = late + AGEING_SECONDS["normal"]
    found = [jobs.next(later, may, paused=True) for _ in range(4)]
    assert sorted(job.id for job in found if job is not None) == ["normal", "normal", "quick", "quick"]
