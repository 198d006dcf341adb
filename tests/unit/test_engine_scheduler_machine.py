"""The scheduler under any order of events (hypothesis): a device that follows the plans to the letter."""

from __future__ import annotations

from itertools import chain, repeat
from typing import get_args

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.types import Priority
from engine.worker.scheduler.policy import Scheduler
from engine.worker.scheduler.sequence import Phase, Sequence
from tests.examples import examples
from tests.fakes.device import Device

MAX_ROWS, CHUNK_TOKENS, KV_TOKENS = 4, 7, 120


class Machine(RuleBasedStateMachine):
    """Sequences come, are fetched, cancelled, preempted, paused; the clock runs. A row gains no token, one or several a step."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(max_rows=MAX_ROWS, chunk_tokens=CHUNK_TOKENS, kv_tokens_bound=KV_TOKENS)
        self.everyone: dict[str, Sequence] = {}
        self.limits: dict[str, int] = {}
        self.device = Device(self.limits)
        self.prefilled: dict[str, int] = {}
        self.fetching: set[str] = set()
        self.gone: set[str] = set()
        self.now = 0.0

    @rule(
        prompt=st.integers(1, 60), answer=st.integers(1, 12), priority=st.sampled_from(get_args(Priority)), whole=st.booleans(),
        fetching=st.booleans(), tenant=st.sampled_from("xy"),
    )  # fmt: skip
    def arrive(self, prompt: int, answer: int, priority: Priority, whole: bool, fetching: bool, tenant: str) -> None:
        name = f"s{len(self.everyone)}"
        one = Sequence(
            name, prompt, answer, whole=whole, preemptible=not whole, priority=priority, tenant=tenant, arrived=self.now
        )
        if fetching:
            one.phase = Phase.FETCHING
            self.fetching.add(name)
        self.everyone[name], self.limits[name] = one, answer
        self.prefilled[name] = 0
        self.scheduler.add(one)

    @precondition(lambda self: self.fetching)
    @rule(data=st.data())
    def fetched(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.fetching)))
        self.fetching.discard(name)
        self.scheduler.fetched(name)

    @precondition(lambda self: self.everyone)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.everyone)))
        self.scheduler.end(name)
        self.gone.add(name)

    @precondition(lambda self: self.everyone)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        self.scheduler.preempt(data.draw(st.sampled_from(sorted(self.everyone))))

    @rule()
    def pause_or_go_on(self) -> None:
        self.scheduler.paused = not self.scheduler.paused

    @rule(seconds=st.floats(0.01, 100.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(count=st.integers(1, 6), gains=st.lists(st.integers(1, 4), max_size=12))
    def ticks(self, count: int, gains: list[int]) -> None:
        self.device.gains = chain(gains, repeat(1))
        for _ in range(count):
            self._tick()

    def _tick(self) -> None:
        self.now += 0.01
        self.scheduler.begin(self.now)
        for one in self.scheduler.starting():
            self.prefilled[one.id] = 0
        plan = self.scheduler.plan()
        tokens = 0
        for chunk in plan.prefill:
            one = self.everyone[chunk.id]
            assert one.phase is not Phase.FETCHING
            assert chunk.start == self.prefilled[chunk.id], "a token is prefilled twice or left out"
            assert not (self.scheduler.paused and one.priority == "batch")
            self.prefilled[chunk.id] = chunk.end
            tokens += 0 if one.whole else chunk.end - chunk.start
            if chunk.joins:
                assert chunk.end == one.prompt_tokens + self.device.drawn[chunk.id] - 1
        assert tokens <= CHUNK_TOKENS
        self.scheduler.apply(plan, self.device.execute(plan))
        self.fetching |= plan.preempted - self.gone

    @invariant()
    def bookkeeping_holds(self) -> None:
        self.scheduler.check()
        assert len(self.device.rows) <= MAX_ROWS
        for name, one in self.everyone.items():
            assert self.device.drawn[name] <= one.max_tokens
            if name not in self.gone:
                assert one.drawn == self.device.drawn[name], "two counts of one row's tokens"
                assert one.in_flight == (name in self.device.in_flight)
        assert sum(one.aged for one in self.everyone.values() if one.phase is not Phase.ENDED) <= 1

    def teardown(self) -> None:
        """Everybody who was not cancelled gets all of its tokens, and soon."""
        self.scheduler.paused = False
        for _ in range(40 * (len(self.everyone) + 1)):
            for name in list(self.fetching):
                self.scheduler.fetched(name)
            self.fetching.clear()
            self._tick()
        assert self.scheduler.idle
        for name, one in self.everyone.items():
            if name not in self.gone:
                assert self.device.drawn[name] == one.max_tokens, f"{name} never ended"


Machine.TestCase.settings = settings(max_examples=examples(150), stateful_step_count=40)
test_whatever_happens_every_sequence_ends_in_order = Machine.TestCase
