"""The scheduler as a pure decision: plans are values, states follow them. No MLX."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from engine.worker.scheduler.policy import Plan, PrefillChunk, Scheduler
from engine.worker.scheduler.sequence import Phase, Sequence


def tick(scheduler: Scheduler) -> Plan:
    plan = scheduler.plan()
    scheduler.apply(plan)
    scheduler.check()
    return plan


def sequence(name: str, prompt_tokens: int = 5, max_tokens: int = 100, *, whole: bool = False) -> Sequence:
    return Sequence(name, prompt_tokens, max_tokens, whole=whole)


def test_a_prompt_is_prefilled_in_chunks_but_for_its_last_token_and_then_decodes() -> None:
    scheduler = Scheduler(max_rows=4, chunk_tokens=10)
    scheduler.add(sequence("a", prompt_tokens=26))
    assert [tick(scheduler).prefill for _ in range(3)] == [
        (PrefillChunk("a", 0, 10, joins=False),),
        (PrefillChunk("a", 10, 20, joins=False),),
        (PrefillChunk("a", 20, 25, joins=True),),
    ]
    assert tick(scheduler) == Plan(leave=frozenset(), decode=True, prefill=())


def test_a_prompt_of_one_token_joins_at_once() -> None:
    scheduler = Scheduler(max_rows=4, chunk_tokens=10)
    scheduler.add(sequence("a", prompt_tokens=1))
    assert tick(scheduler).prefill == (PrefillChunk("a", 0, 0, joins=True),)


def test_running_rows_decode_in_every_tick_of_a_long_prefill() -> None:
    scheduler = Scheduler(max_rows=4, chunk_tokens=10)
    scheduler.add(sequence("short", prompt_tokens=2))
    tick(scheduler)
    scheduler.add(sequence("long", prompt_tokens=1001))
    plans = [tick(scheduler) for _ in range(100)]
    assert all(plan.decode for plan in plans)
    assert max(sum(chunk.stop - chunk.start for chunk in plan.prefill) for plan in plans) == 10
    assert plans[-1].prefill[0].joins


def test_short_prompts_share_a_tick_in_order_of_arrival() -> None:
    scheduler = Scheduler(max_rows=8, chunk_tokens=10)
    for name in "abc":
        scheduler.add(sequence(name, prompt_tokens=5))
    assert tick(scheduler).prefill == (
        PrefillChunk("a", 0, 4, joins=True),
        PrefillChunk("b", 0, 4, joins=True),
        PrefillChunk("c", 0, 2, joins=False),
    )


def test_a_sequence_that_cannot_be_cut_is_prefilled_in_one_piece() -> None:
    scheduler = Scheduler(max_rows=2, chunk_tokens=10)
    scheduler.add(sequence("a", prompt_tokens=51, whole=True))
    assert tick(scheduler).prefill == (PrefillChunk("a", 0, 50, joins=True),)


def test_no_more_rows_than_allowed_and_the_next_takes_a_leaver_s_place() -> None:
    scheduler = Scheduler(max_rows=2, chunk_tokens=100)
    for name in "abc":
        scheduler.add(sequence(name))
    assert [chunk.id for chunk in tick(scheduler).prefill] == ["a", "b"]
    assert tick(scheduler).prefill == ()
    scheduler.end("a")
    plan = tick(scheduler)
    assert plan.leave == {"a"}
    assert [chunk.id for chunk in plan.prefill] == ["c"]


def test_a_row_that_has_drawn_all_its_tokens_leaves_unasked() -> None:
    scheduler = Scheduler(max_rows=2, chunk_tokens=100)
    scheduler.add(sequence("a", max_tokens=2))
    scheduler.add(sequence("b", max_tokens=9))
    tick(scheduler)
    assert [tick(scheduler).leave for _ in range(3)] == [frozenset(), frozenset(), {"a"}]


def test_the_last_row_leaves_without_another_step() -> None:
    scheduler = Scheduler(max_rows=2, chunk_tokens=100)
    scheduler.add(sequence("a", max_tokens=1))
    assert [tick(scheduler).decode for _ in range(3)] == [False, True, False]
    assert scheduler.idle


@pytest.mark.parametrize(("ticks", "phase"), [(0, Phase.WAITING), (1, Phase.PREFILLING), (3, Phase.RUNNING)])
def test_ending_in_any_phase_frees_the_place(ticks: int, phase: Phase) -> None:
    scheduler = Scheduler(max_rows=1, chunk_tokens=10)
    one, other = sequence("a", prompt_tokens=26), sequence("b")
    scheduler.add(one)
    scheduler.add(other)
    for _ in range(ticks):
        tick(scheduler)
    assert one.phase is phase
    scheduler.end("a")
    scheduler.end("a")
    plan = tick(scheduler)
    assert plan.leave == ({"a"} if phase is Phase.RUNNING else frozenset())
    assert [chunk.id for chunk in plan.prefill] == ["b"]
    assert one.phase is Phase.ENDED


def test_ending_an_unknown_sequence_is_harmless() -> None:
    scheduler = Scheduler(max_rows=1, chunk_tokens=10)
    scheduler.end("nobody")
    assert scheduler.idle
    assert tick(scheduler).empty


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_every_sequence_ends_and_bookkeeping_holds(seed: int) -> None:
    """A device that follows the plans to the letter, and random arrivals and cancellations."""
    random_ = random.Random(seed)
    scheduler = Scheduler(max_rows=3, chunk_tokens=7)
    drawn: dict[str, int] = {}
    batch: set[str] = set()
    cancelled: set[str] = set()
    everyone = [sequence(f"s{i}", random_.randint(1, 40), random_.randint(1, 15), whole=i % 5 == 0) for i in range(25)]
    arriving = list(everyone)
    while arriving or not scheduler.idle:
        if arriving and random_.random() < 0.4:
            scheduler.add(arriving.pop())
        if random_.random() < 0.1:
            victim = random_.choice(everyone)
            if victim not in arriving:
                scheduler.end(victim.id)
                cancelled.add(victim.id)
        plan = scheduler.plan()
        assert plan.leave <= batch
        batch -= plan.leave
        assert plan.decode == bool(batch)
        for name in batch:
            drawn[name] = drawn.get(name, 0) + 1
        batch |= {chunk.id for chunk in plan.prefill if chunk.joins}
        assert len(batch) <= 3
        scheduler.apply(plan)
        scheduler.check()
    assert not batch
    for item in everyone:
        assert drawn.get(item.id, 0) <= item.max_tokens
        if item.id not in cancelled:
            assert drawn[item.id] == item.max_tokens


def test_prefill_pauses_at_every_stop_and_goes_on_in_the_same_tick() -> None:
    scheduler = Scheduler(max_rows=2, chunk_tokens=10)
    one = sequence("a", prompt_tokens=21)
    one.stops = (4, 7, 20)
    scheduler.add(one)
    assert [(chunk.start, chunk.stop) for _ in range(2) for chunk in tick(scheduler).prefill] == [
        (0, 4), (4, 7), (7, 10), (10, 20),
    ]  # fmt: skip


def test_what_was_restored_is_not_computed_and_leaves_room_for_the_next() -> None:
    scheduler = Scheduler(max_rows=4, chunk_tokens=10)
    for name in "abc":
        scheduler.add(sequence(name, prompt_tokens=26))
    begun = []
    for item in scheduler.starting():
        item.prefilled = 22
        begun.append(item.id)
    assert begun == ["a", "b", "c"]
    assert tick(scheduler).prefill == (
        PrefillChunk("a", 22, 25, joins=True),
        PrefillChunk("b", 22, 25, joins=True),
        PrefillChunk("c", 22, 25, joins=True),
    )


def test_a_sequence_that_is_being_fetched_holds_nobody_up() -> None:
    scheduler = Scheduler(max_rows=2, chunk_tokens=100)
    late, other = sequence("late"), sequence("other")
    late.phase = Phase.FETCHING
    scheduler.add(late)
    assert scheduler.idle
    scheduler.add(other)
    assert [chunk.id for chunk in tick(scheduler).prefill] == ["other"]
    scheduler.fetched("late")
    scheduler.fetched("unknown")
    assert [chunk.id for chunk in tick(scheduler).prefill] == ["late"]


def test_a_preempted_row_waits_before_all_others_with_what_it_has_said() -> None:
    scheduler = Scheduler(max_rows=1, chunk_tokens=100)
    scheduler.add(sequence("a", prompt_tokens=5, max_tokens=10))
    scheduler.add(sequence("b"))
    for _ in range(4):
        tick(scheduler)
    assert scheduler.preempt("a")
    assert not scheduler.preempt("a")
    assert not scheduler.preempt("b")
    plan = tick(scheduler)
    assert plan.leave == plan.preempted == {"a"}
    assert [chunk.id for chunk in plan.prefill] == ["b"]
    scheduler.fetched("a")
    scheduler.end("b")
    assert tick(scheduler).prefill == (PrefillChunk("a", 0, 7, joins=True),)  # 5 of the prompt, 3 said, less the last
    assert sum(tick(scheduler).decode for _ in range(20)) == 7


@pytest.mark.parametrize("seed", range(10))
def test_preemption_and_fetching_lose_and_repeat_no_token(seed: int) -> None:
    random_ = random.Random(seed)
    scheduler = Scheduler(max_rows=3, chunk_tokens=7)
    drawn: dict[str, int] = {}
    fetching: list[str] = []
    batch: set[str] = set()
    everyone = [sequence(f"s{i}", random_.randint(1, 40), random_.randint(1, 15)) for i in range(25)]
    arriving = list(everyone)
    while arriving or fetching or not scheduler.idle:
        if arriving and random_.random() < 0.4:
            item = arriving.pop()
            item.phase = random_.choice([Phase.WAITING, Phase.FETCHING])
            fetching += [item.id] if item.phase is Phase.FETCHING else []
            scheduler.add(item)
        if fetching and random_.random() < 0.5:
            scheduler.fetched(fetching.pop())
        if batch and random_.random() < 0.2:
            scheduler.preempt(random_.choice(sorted(batch)))
        for item in scheduler.starting():
            item.prefilled = random_.randint(0, item.prefill_tokens)
            item.stops = tuple(random_.sample(range(1, 41), 2))
        plan = scheduler.plan()
        batch -= plan.leave
        for name in batch:
            drawn[name] = drawn.get(name, 0) + 1
        batch |= {chunk.id for chunk in plan.prefill if chunk.joins}
        assert len(batch) <= 3
        scheduler.apply(plan)
        fetching += plan.preempted
        scheduler.check()
    assert {item.id: item.max_tokens for item in everyone} == drawn


def test_the_scheduler_is_imported_without_mlx() -> None:
    code = (
        "import sys, engine.worker.scheduler.policy; sys.exit(any(name.split('.')[0] == 'mlx' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
