"""The scheduler as a pure decision: plans are values, states follow them. No MLX."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import defaultdict
from typing import Any, get_args
from weakref import WeakKeyDictionary

import pytest

from engine.types import Priority
from engine.worker.scheduler.batch_pause import HOLD_SECONDS, SHARE_SECONDS, BatchPause
from engine.worker.scheduler.capacity import BATCH_CHUNK
from engine.worker.scheduler.pace import SMALLEST_CHUNK, STALL_SECONDS, Pace, Ticks
from engine.worker.scheduler.plan import Drawn, Plan, PrefillChunk, StepResult
from engine.worker.scheduler.policy import Scheduler
from engine.worker.scheduler.sequence import Phase, Sequence
from tests.fakes.device import Device

devices: WeakKeyDictionary[Scheduler, Device] = WeakKeyDictionary()
"""One for each scheduler of a test."""
MANY = defaultdict[str, int](lambda: 1_000_000)


def tick(scheduler: Scheduler) -> Plan:
    device = devices.setdefault(scheduler, Device(MANY))
    plan = scheduler.plan()
    scheduler.apply(plan, device.execute(plan))
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
    assert max(sum(chunk.end - chunk.start for chunk in plan.prefill) for plan in plans) == 10
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
    cancelled: set[str] = set()
    everyone = [sequence(f"s{i}", random_.randint(1, 40), random_.randint(1, 15), whole=i % 5 == 0) for i in range(25)]
    device = Device({item.id: item.max_tokens for item in everyone})
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
        assert plan.leave <= device.rows
        assert plan.decode == bool(device.rows - plan.leave)
        scheduler.apply(plan, device.execute(plan))
        assert len(device.rows) <= 3
        scheduler.check()
    assert not device.rows
    for item in everyone:
        assert device.drawn[item.id] <= item.max_tokens
        if item.id not in cancelled:
            assert device.drawn[item.id] == item.max_tokens


def test_prefill_pauses_at_every_checkpoint_and_goes_on_in_the_same_tick() -> None:
    scheduler = Scheduler(max_rows=2, chunk_tokens=10)
    one = sequence("a", prompt_tokens=21)
    one.checkpoints_at = (4, 7, 20)
    scheduler.add(one)
    assert [(chunk.start, chunk.end) for _ in range(2) for chunk in tick(scheduler).prefill] == [
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


def test_a_row_that_is_preempted_twice_waits_each_time_with_all_that_it_has_drawn() -> None:
    scheduler = Scheduler(max_rows=1, chunk_tokens=100)
    scheduler.add(sequence("a", prompt_tokens=5, max_tokens=100))
    for drawn in (3, 6):  # three steps run before each preemption
        for _ in range(4):
            tick(scheduler)
        assert scheduler.preempt("a")
        tick(scheduler)
        scheduler.fetched("a")
        assert [chunk.end for chunk in scheduler.plan().prefill] == [5 + drawn - 1]


@pytest.mark.parametrize("seed", range(10))
def test_preemption_and_fetching_lose_and_repeat_no_token(seed: int) -> None:
    random_ = random.Random(seed)
    scheduler = Scheduler(max_rows=3, chunk_tokens=7)
    fetching: list[str] = []
    everyone = [sequence(f"s{i}", random_.randint(1, 40), random_.randint(1, 15)) for i in range(25)]
    device = Device({item.id: item.max_tokens for item in everyone})
    arriving = list(everyone)
    while arriving or fetching or not scheduler.idle:
        if arriving and random_.random() < 0.4:
            item = arriving.pop()
            item.phase = random_.choice([Phase.WAITING, Phase.FETCHING])
            fetching += [item.id] if item.phase is Phase.FETCHING else []
            scheduler.add(item)
        if fetching and random_.random() < 0.5:
            scheduler.fetched(fetching.pop())
        if device.rows and random_.random() < 0.2:
            scheduler.preempt(random_.choice(sorted(device.rows)))
        for item in scheduler.starting():
            item.prefilled = random_.randint(0, item.prefill_tokens)
            item.checkpoints_at = tuple(random_.sample(range(1, 41), 2))
        plan = scheduler.plan()
        scheduler.apply(plan, device.execute(plan))
        assert len(device.rows) <= 3
        fetching += plan.preempted
        scheduler.check()
    assert {item.id: item.max_tokens for item in everyone} == device.drawn


def results(scheduler: Scheduler, *found: StepResult) -> list[Plan]:
    plans = []
    for result in found:
        plan = scheduler.plan()
        scheduler.apply(plan, result)
        scheduler.check()
        plans.append(plan)
    return plans


def test_what_a_row_has_drawn_is_what_was_read_and_a_step_in_flight_counts_as_one_token() -> None:
    scheduler = Scheduler(max_rows=1, chunk_tokens=100)
    one = sequence("a", prompt_tokens=5, max_tokens=6)
    scheduler.add(one)
    flying, read = frozenset("a"), Drawn("a", 0)
    counted = []
    for result in (StepResult(), StepResult((read,)), StepResult((), flying), StepResult((read,) * 3, flying)):
        results(scheduler, result)
        counted.append((one.drawn, one.in_flight, one.kv_tokens, one.exhausted))
    assert counted == [(0, False, 5, False), (1, False, 6, False), (1, True, 7, False), (4, True, 10, False)]
    (last,) = results(scheduler, StepResult((read,), flying))
    assert last.decode
    assert (one.drawn, one.exhausted) == (5, True)  # the last token is in flight: no further step
    assert results(scheduler, StepResult((read,))) == [Plan(leave=frozenset("a"), decode=False, prefill=())]
    assert (one.drawn, one.phase) == (6, Phase.ENDED)


def test_a_row_that_was_preempted_goes_on_after_all_that_it_was_found_to_have_drawn() -> None:
    scheduler = Scheduler(max_rows=1, chunk_tokens=100)
    one = sequence("a", prompt_tokens=5, max_tokens=20)
    scheduler.add(one)
    read = Drawn("a", 0)
    results(scheduler, StepResult(), StepResult((read,)), StepResult((read,) * 2, frozenset("a")))
    assert scheduler.preempt("a")
    results(scheduler, StepResult((read,) * 4))  # the step that was in flight is read before the row leaves
    assert (one.drawn, one.in_flight, one.prompt_growth, one.input_tokens) == (7, False, 7, 12)
    scheduler.fetched("a")
    assert tick(scheduler).prefill == (PrefillChunk("a", 0, 11, joins=True),)


def test_tokens_of_a_row_that_has_ended_count_for_nobody() -> None:
    scheduler = Scheduler(max_rows=2, chunk_tokens=100)
    one = sequence("a")
    scheduler.add(one)
    results(scheduler, StepResult(), StepResult((), frozenset("a")))
    scheduler.end("a")
    results(scheduler, StepResult((Drawn("a", 0),), frozenset()))
    assert one.drawn == 0
    assert scheduler.idle


def test_the_scheduler_is_imported_without_mlx() -> None:
    code = (
        "import sys, engine.worker.scheduler.jobs, engine.worker.scheduler.policy; "
        "sys.exit(any(name.split('.')[0] == 'mlx' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def batch(name: str, prompt_tokens: int = 5, max_tokens: int = 100, **more: Any) -> Sequence:
    return Sequence(name, prompt_tokens, max_tokens, priority="batch", **more)


def interactive(name: str, prompt_tokens: int = 5, max_tokens: int = 100, **more: Any) -> Sequence:
    return Sequence(name, prompt_tokens, max_tokens, priority="interactive", **more)


def begun(scheduler: Scheduler, now: float = 0.0) -> Plan:
    """A tick as the loop does it."""
    scheduler.begin(now)
    list(scheduler.starting())
    return tick(scheduler)


def test_interactive_and_normal_requests_go_before_batch_work_that_came_first() -> None:
    scheduler = Scheduler(max_rows=8, chunk_tokens=4)
    for one in (batch("batch"), sequence("normal"), interactive("interactive")):
        scheduler.add(one)
    assert [begun(scheduler).prefill[0].id for _ in range(3)] == ["interactive", "normal", "batch"]


def test_a_long_batch_prompt_lets_an_interactive_one_pass_between_two_chunks() -> None:
    scheduler = Scheduler(max_rows=8, chunk_tokens=10)
    scheduler.add(batch("long", prompt_tokens=101))
    begun(scheduler)
    scheduler.add(interactive("quick"))
    plan = begun(scheduler)
    # Alone: what else the tick had room for would be waited for by its first token.
    assert [(chunk.id, chunk.joins) for chunk in plan.prefill] == [("quick", True)]
    assert [chunk.id for chunk in begun(scheduler).prefill] == ["long"]


def test_one_row_is_kept_from_batch_work() -> None:
    scheduler = Scheduler(max_rows=4, chunk_tokens=100)
    for i in range(6):
        scheduler.add(batch(f"b{i}"))
    begun(scheduler)
    assert scheduler.running == 3
    scheduler.add(sequence("normal"))
    assert [chunk.id for chunk in begun(scheduler).prefill] == ["normal"]


def test_the_last_batch_row_gives_its_place_to_an_interactive_request() -> None:
    scheduler = Scheduler(max_rows=2, chunk_tokens=100)
    for i in range(2):
        scheduler.add(batch(f"b{i}"))
    begun(scheduler)
    scheduler.add(interactive("i"))
    plan = begun(scheduler)
    assert plan.preempted == plan.leave == {"b1"}
    assert [chunk.id for chunk in plan.prefill] == ["i"]
    scheduler.fetched("b1")
    assert begun(scheduler).preempted == frozenset()
    scheduler.end("i")
    assert not begun(scheduler).prefill  # a row leaves
    assert [chunk.id for chunk in begun(scheduler).prefill] == ["b1"]


def test_normal_rows_give_way_to_nobody() -> None:
    scheduler = Scheduler(max_rows=1, chunk_tokens=100)
    scheduler.add(sequence("normal"))
    begun(scheduler)
    scheduler.add(interactive("i"))
    assert begun(scheduler) == Plan(leave=frozenset(), decode=True, prefill=())


def test_batch_rows_pause_while_the_prompt_of_another_is_read() -> None:
    scheduler = Scheduler(max_rows=4, chunk_tokens=10)
    scheduler.add(batch("b"))
    begun(scheduler)
    scheduler.add(sequence("n", prompt_tokens=21))
    assert [begun(scheduler).decode for _ in range(3)] == [False, False, True]


def test_batch_rows_pause_for_prompts_of_the_batch_too() -> None:
    scheduler = Scheduler(max_rows=8, chunk_tokens=10)
    scheduler.add(batch("first"))
    begun(scheduler)
    scheduler.add(batch("second", prompt_tokens=21))
    plans = [begun(scheduler) for _ in range(3)]
    assert [plan.decode for plan in plans] == [False, False, True]
    assert not any(chunk.draws for plan in plans for chunk in plan.prefill)


@pytest.mark.parametrize(
    ("priority", "tokens_a_second", "chunk"),
    [("batch", 8000, 200), ("batch", 1000, BATCH_CHUNK), ("normal", 4000, 512)],
)
def test_a_prompt_of_the_batch_takes_no_longer_than_others_could_wait_also_when_nothing_runs(
    priority: Priority, tokens_a_second: int, chunk: int
) -> None:
    """Unless that is too little to be worth it."""
    scheduler = Scheduler(max_rows=8, chunk_tokens=512)
    scheduler.pace.observe(1.0, decoded=False, prefill_tokens=tokens_a_second)
    scheduler.add(Sequence("p", 1000, 5, priority=priority))
    assert [(one.start, one.end) for one in begun(scheduler).prefill] == [(0, chunk)]


def test_no_prompt_of_the_batch_begins_while_rows_leave_unless_it_is_aged() -> None:
    scheduler = Scheduler(max_rows=8, chunk_tokens=64)
    for name in ("first", "second"):
        scheduler.add(batch(name))
    begun(scheduler)
    for late, prompt in (("first", batch("b")), ("second", batch("aged"))):
        prompt.aged = prompt.id == "aged"
        scheduler.add(prompt)
        scheduler.end(late)
        plan = begun(scheduler)
        assert (plan.leave, [chunk.id for chunk in plan.prefill]) == ({late}, ["aged"] if prompt.aged else [])
        if not prompt.aged:
            assert [chunk.id for chunk in begun(scheduler).prefill] == ["b"]


def test_a_first_token_is_drawn_apart_from_batch_rows_and_with_all_others() -> None:
    scheduler = Scheduler(max_rows=8, chunk_tokens=100)
    scheduler.add(batch("b"))
    assert not begun(scheduler).prefill[0].draws  # no row runs that it would wait for
    short = sequence("one token", max_tokens=1)
    scheduler.add(short)
    assert [(chunk.id, chunk.joins, chunk.draws) for chunk in begun(scheduler).prefill] == [("one token", True, True)]
    assert short.exhausted
    assert begun(scheduler) == Plan(leave=frozenset({"one token"}), decode=True, prefill=())
    picture = sequence("picture", whole=True)
    scheduler.add(picture)
    assert not begun(scheduler).prefill[0].draws  # only the batch that it joins knows its positions
    scheduler.add(interactive("i"))
    assert not begun(scheduler).prefill[0].draws  # a stream runs, which would have to wait


def test_batch_rows_go_on_beside_answers_of_one_token_without_end() -> None:
    scheduler = Scheduler(max_rows=8, chunk_tokens=100)
    scheduler.add(batch("b", max_tokens=1000))
    begun(scheduler)
    decoded = 0
    for i in range(40):
        scheduler.add(interactive(f"i{i}", max_tokens=1))
        decoded += begun(scheduler).decode
    assert decoded == 20


def test_a_stream_pauses_for_no_other_request() -> None:
    scheduler = Scheduler(max_rows=4, chunk_tokens=10)
    scheduler.add(sequence("n"))
    begun(scheduler)
    scheduler.add(interactive("i", prompt_tokens=41))
    assert all(begun(scheduler).decode for _ in range(4))


def test_paused_batch_work_waits_and_other_work_does_not() -> None:
    scheduler = Scheduler(max_rows=4, chunk_tokens=10)
    scheduler.add(batch("running"))
    begun(scheduler)
    scheduler.paused = True
    scheduler.add(batch("waiting"))
    assert scheduler.idle
    assert begun(scheduler).empty
    scheduler.add(sequence("n"))
    assert not scheduler.idle
    assert [chunk.id for chunk in begun(scheduler).prefill] == ["n"]
    assert begun(scheduler).decode  # rows of one batch run together
    scheduler.end("n")
    begun(scheduler)
    scheduler.paused = False
    assert [chunk.id for chunk in begun(scheduler).prefill] == ["waiting"]


def test_what_has_waited_too_long_has_every_second_turn_one_at_a_time() -> None:
    scheduler = Scheduler(max_rows=100, chunk_tokens=4)
    scheduler.add(batch("old"))
    scheduler.add(batch("older"))
    taken = []
    for i in range(6):
        scheduler.add(interactive(f"i{i}", arrived=1000.0))
        taken.append(begun(scheduler, now=1000.0).prefill[0].id)
    assert taken.count("old") == 1
    assert "older" not in taken  # the first one is still running


def test_tenants_take_turns() -> None:
    scheduler = Scheduler(max_rows=3, chunk_tokens=1000)
    for i in range(5):
        scheduler.add(sequence(f"many{i}"))
    scheduler.add(Sequence("one", 5, 100, tenant="other"))
    assert [chunk.id for chunk in begun(scheduler).prefill] == ["many0", "one", "many1"]


def test_prompts_wait_for_memory_and_a_first_one_has_all_of_it() -> None:
    scheduler = Scheduler(max_rows=8, chunk_tokens=1000, kv_tokens_bound=100)
    scheduler.add(sequence("large", prompt_tokens=150, max_tokens=5))
    scheduler.add(sequence("next", prompt_tokens=60))
    scheduler.add(sequence("small", prompt_tokens=10))
    assert [chunk.id for chunk in begun(scheduler).prefill] == ["large"]
    assert begun(scheduler).prefill == ()
    scheduler.end("large")
    assert [chunk.id for chunk in begun(scheduler).prefill] == ["next", "small"]


def test_growing_answers_swap_out_the_least_and_newest_row() -> None:
    scheduler = Scheduler(max_rows=8, chunk_tokens=1000, kv_tokens_bound=100)
    scheduler.add(sequence("a", prompt_tokens=40))
    scheduler.add(batch("b", prompt_tokens=40))
    scheduler.add(interactive("c", prompt_tokens=10))
    plans = [begun(scheduler) for _ in range(8)]
    assert [plan.preempted for plan in plans if plan.preempted] == [{"b"}]
    scheduler.fetched("b")
    for _ in range(12):  # there is no room for it yet
        assert not begun(scheduler).prefill
    scheduler.end("a")
    assert not begun(scheduler).prefill  # a row leaves
    assert [chunk.id for chunk in begun(scheduler).prefill] == ["b"]


def test_a_prompt_that_is_begun_goes_on_while_a_more_urgent_one_waits_for_its_memory() -> None:
    scheduler = Scheduler(max_rows=8, chunk_tokens=7, kv_tokens_bound=120)
    scheduler.add(sequence("begun", prompt_tokens=58, max_tokens=1))
    begun(scheduler)
    scheduler.add(interactive("urgent", prompt_tokens=80, max_tokens=1))
    for _ in range(30):
        begun(scheduler)
    assert scheduler.idle


def test_the_first_to_arrive_begins_first_whenever_it_was_made_ready() -> None:
    scheduler = Scheduler(max_rows=1, chunk_tokens=100)
    scheduler.add(Sequence("text", 5, 5, arrived=2.0))
    scheduler.add(Sequence("with an image", 5, 5, arrived=1.0))
    assert [chunk.id for chunk in begun(scheduler).prefill] == ["with an image"]


def test_sequences_with_images_wait_until_they_have_begun() -> None:
    scheduler = Scheduler(max_rows=1, chunk_tokens=100)
    scheduler.add(sequence("text"))
    assert not scheduler.waits_with_images("batch")
    image = Sequence("image", 5, 5, preemptible=False, phase=Phase.FETCHING)
    scheduler.add(image)
    assert [scheduler.waits_with_images(priority) for priority in get_args(Priority)] == [False, True, True]
    scheduler.fetched("image")
    assert scheduler.waits_with_images("normal")
    scheduler.end("text")
    begun(scheduler)
    assert image.phase is Phase.RUNNING
    assert not scheduler.waits_with_images("batch")


def test_ticks_tell_a_step_s_time_and_a_chunk_s_one_tick_later() -> None:
    seen: list[tuple[float, bool, int]] = []

    class Noted(Pace):
        def observe(self, seconds: float, *, decoded: bool, prefill_tokens: int) -> None:
            seen.append((seconds, decoded, prefill_tokens))

    ticks = Ticks(Noted())
    ticks.ended(0.0, 1.0, decoded=False, prefill_tokens=7, beside=False)  # waited for
    ticks.ended(1.5, 2.0, decoded=True, prefill_tokens=9, beside=True)
    ticks.ended(2.5, 4.0, decoded=True, prefill_tokens=0, beside=True)
    assert seen == [(1.0, False, 7), (2.0, True, 9)]
    ticks.interrupted()
    ticks.ended(9.0, 10.0, decoded=True, prefill_tokens=0, beside=True)
    assert len(seen) == 2


def test_beside_a_stream_a_chunk_is_as_long_as_the_stream_can_wait() -> None:
    scheduler = Scheduler(max_rows=4, chunk_tokens=512)
    scheduler.add(sequence("stream"))
    begun(scheduler)
    for _ in range(20):
        scheduler.pace.observe(0.010, decoded=True, prefill_tokens=0)
        scheduler.pace.observe(0.110, decoded=True, prefill_tokens=200)  # 0.5 ms a token
    scheduler.add(sequence("long", prompt_tokens=2000))
    (chunk,) = begun(scheduler).prefill
    assert chunk.end == pytest.approx(STALL_SECONDS / 0.0005, rel=0.02)


def test_slow_steps_give_prefill_as_much_time_as_themselves() -> None:
    pace = Pace()
    assert pace.chunk(256) == 256
    for _ in range(50):
        pace.observe(0.2, decoded=True, prefill_tokens=0)
        pace.observe(0.4, decoded=True, prefill_tokens=50)
    assert pace.chunk(256) == pytest.approx(50, abs=1)
    for _ in range(50):
        pace.observe(9.0, decoded=False, prefill_tokens=50)
    assert pace.chunk(256) == SMALLEST_CHUNK
    assert pace.chunk(8) == 8


def test_a_pause_ends_by_itself_for_a_moment() -> None:
    pause = BatchPause()
    assert not pause.paused(5.0)
    pause.hold(5.0)
    pause.hold(9.0)  # told again: nothing begins anew
    assert pause.paused(5.0)
    assert pause.ends_in(6.0) == pytest.approx(HOLD_SECONDS - 1)
    assert not pause.paused(5.0 + HOLD_SECONDS)
    assert pause.ends_in(5.0 + HOLD_SECONDS) is None
    assert pause.paused(5.0 + HOLD_SECONDS + SHARE_SECONDS)
    pause.release(6.0)
    assert not pause.paused(6.0)
    assert pause.ends_in(6.0) is None


@pytest.mark.parametrize("idle_ticks", [0, 1])
@pytest.mark.parametrize("tokens", [1, 3, 7, 8, 31])
def test_an_aged_sequence_begins_whatever_the_rhythm_of_those_before_it(tokens: int, idle_ticks: int) -> None:
    scheduler, made = Scheduler(max_rows=1, chunk_tokens=64), 0
    old = Sequence("old", 10, 1, arrived=0.0)
    for count in range(40 * (tokens + 2)):
        while scheduler.waiting < 3:
            made += 1
            scheduler.add(Sequence(f"r{made}", 10, tokens, priority="interactive", arrived=99.0))
        if count == 0:
            scheduler.add(old)
            for _ in range(idle_ticks):
                scheduler.begin(100.0)
        begun(scheduler, 100.0)
        if old.phase is Phase.RUNNING:
            return
    pytest.fail("it never began")


def test_an_aged_prompt_too_large_for_what_is_left_gets_its_memory() -> None:
    scheduler, made = Scheduler(max_rows=16, chunk_tokens=64, kv_tokens_bound=1000), 0
    old = Sequence("old", 800, 1, arrived=0.0)
    for count in range(2000):
        while scheduler.waiting + scheduler.running < 8:
            made += 1
            tokens = 11 + 13 * made % 37
            scheduler.add(Sequence(f"r{made}", 60, tokens, priority="interactive", arrived=99.0))
        if count == 30:
            scheduler.add(old)
        begun(scheduler, 100.0)
        if count > 30 and old.phase is not Phase.WAITING:
            return
    pytest.fail("it never began")


@pytest.mark.parametrize("case", ["a prompt that is begun has the memory", "a row that cannot be swapped out"])
def test_paused_batch_work_goes_on_when_it_is_in_the_way_of_a_waiting_request(case: str) -> None:
    if "memory" in case:
        scheduler = Scheduler(max_rows=4, chunk_tokens=256, kv_tokens_bound=1000)
        scheduler.add(Sequence("batch", 900, 5, priority="batch"))
    else:
        scheduler = Scheduler(max_rows=1, chunk_tokens=256)
        scheduler.add(Sequence("batch", 100, 20, priority="batch", preemptible=False))
    begun(scheduler)
    urgent = Sequence("urgent", 500, 5, priority="interactive")
    scheduler.add(urgent)
    for _ in range(60):
        scheduler.paused = True  # as the loop finds it in every tick
        assert not begun(scheduler).empty
        if urgent.phase is Phase.RUNNING:
            break
    assert urgent.phase is Phase.RUNNING


@pytest.mark.parametrize("pause", [0.001, 0.2])
def test_batch_work_has_its_share_beside_short_requests_in_a_row(pause: float) -> None:
    between, step, opened = BatchPause(), 0.001, 0.0
    for tick in range(110_000):
        now = tick * step
        working = now % (0.5 + pause) < 0.5
        between.hold(now) if working else between.release(now)
        opened += 0.0 if between.paused(now) else step
    pauses = 110 * pause / (0.5 + pause)
    assert 9.0 + 0.9 * pauses < opened < 11.0 + pauses


def test_a_release_as_long_as_a_share_begins_a_new_stretch() -> None:
    pause = BatchPause()
    pause.hold(0.0)
    pause.release(9.0)
    pause.hold(9.0 + SHARE_SECONDS)
    assert pause.ends_in(9.0 + SHARE_SECONDS) == pytest.approx(HOLD_SECONDS)
