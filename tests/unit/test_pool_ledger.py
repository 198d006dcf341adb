"""Which models may take memory: the ledger's decisions one by one, and over random histories."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from engine.pool.ledger import (
    LEAST_KV_BYTES,
    SURPLUS_SECONDS,
    WORKER_BYTES,
    Admit,
    Decision,
    Entry,
    Evict,
    Limit,
    Refuse,
    Rules,
    Shrink,
    Wanted,
    charge,
    decide,
    estimate,
    expired,
    holders,
    kv_that_fits,
    limit,
    relief,
    surplus,
    victims,
)
from tests.examples import examples

GB = 10**9
LIMIT = Limit(10 * GB, "its preset's share", 10 * GB)
RULES = Rules(minimum_residency_seconds=15.0)
NOW = 1000.0


def entry(model: str, gigabytes: float = 4, **fields: object) -> Entry:
    return replace(Entry(model, round(gigabytes * GB)), **fields)  # type: ignore[arg-type]


def asked(gigabytes: float = 4, *, large: bool = False) -> Wanted:
    return Wanted("new", round(gigabytes * GB), large)


def test_what_fits_is_admitted() -> None:
    assert decide([entry("a"), entry("b", 2)], asked(4), LIMIT, RULES, NOW) == Admit()


def test_the_longest_unused_and_largest_go_first_and_no_more_than_needed() -> None:
    entries = [entry("fresh", 3, last_used=999), entry("small", 1, last_used=100), entry("old", 4, last_used=200)]
    assert decide(entries, asked(5), LIMIT, RULES, NOW) == Evict(("old",))
    assert decide(entries, asked(10), LIMIT, RULES, NOW) == Evict(("old", "small", "fresh"))


def test_a_victim_that_is_not_needed_in_the_end_stays() -> None:
    chosen = victims([entry("little", 1, last_used=0), entry("big", 8, last_used=990)], 5 * GB, NOW)
    assert chosen is not None
    assert [victim.model for victim in chosen] == ["big"]


@pytest.mark.parametrize(
    ("fields", "said", "retry"),
    [
        ({"users": 2}, "has 2 requests", 5),
        ({"users": 1}, "has 1 request", 5),
        ({"pinned": True}, "is pinned", 30),
        ({"moving": True}, "is being loaded or unloaded", 2),
        ({"loaded_at": 995.0}, "was loaded just now and stays 10 s more", 11),
    ],
)
def test_what_cannot_go_is_named_with_its_reason(fields: dict[str, object], said: str, retry: int) -> None:
    decision = decide([entry("holder", 8, **fields)], asked(4), LIMIT, RULES, NOW)
    assert isinstance(decision, Refuse)
    assert f"holder (8.0 GB) {said}" in decision.sentence
    assert "new needs about 4.0 GB of the 10.0 GB" in decision.sentence
    assert (decision.retry_after_seconds, decision.never) == (retry, False)


def test_other_programs_are_named_when_they_hold_the_memory() -> None:
    decision = decide([], asked(4), replace(LIMIT, bytes=3 * GB), RULES, NOW)
    assert isinstance(decision, Refuse)
    assert "other programs use the rest: no model is loaded" in decision.sentence


def test_a_model_larger_than_the_ceiling_is_refused_for_good_and_nothing_is_unloaded_for_it() -> None:
    decision = decide([entry("idle", 4)], asked(11), LIMIT, RULES, NOW)
    assert isinstance(decision, Refuse)
    assert decision.never
    assert "its preset's share" in decision.sentence


def test_an_idle_recogniser_leaves_before_a_large_model_loads_although_it_is_pinned() -> None:
    listener = entry("listener", 1, pinned=True, gives_way=True, loaded_at=NOW)
    assert decide([listener], asked(5, large=True), LIMIT, RULES, NOW) == Evict(("listener",))
    assert decide([listener], asked(5), LIMIT, RULES, NOW) == Admit(), "a small one may stand beside it"
    busy = decide([replace(listener, users=1)], asked(5, large=True), LIMIT, RULES, NOW)
    assert isinstance(busy, Refuse)


def test_a_pinned_model_that_yields_goes_last_and_only_for_a_large_one() -> None:
    entries = [entry("resident", 3, pinned=True, yields=True, last_used=0), entry("idle", 2, last_used=999)]
    assert decide(entries, asked(7, large=True), LIMIT, RULES, NOW) == Evict(("idle",))
    assert decide(entries, asked(9, large=True), LIMIT, RULES, NOW) == Evict(("idle", "resident"))
    assert isinstance(decide(entries, asked(9), LIMIT, RULES, NOW), Refuse)


def test_a_model_that_fills_the_machine_gets_a_smaller_kv_tier() -> None:
    assert kv_that_fits(4 * GB, GB, 10 * GB) == GB
    assert kv_that_fits(8 * GB, 2 * GB, 10 * GB) == 10 * GB - estimate(8 * GB, 0)
    assert kv_that_fits(10 * GB, GB, 10 * GB) == LEAST_KV_BYTES
    assert kv_that_fits(10 * GB, 0, 10 * GB) == 0


def test_one_large_model_at_a_time() -> None:
    rules = replace(RULES, one_large=True)
    other = entry("other", 4, large=True)
    assert decide([other], asked(4, large=True), LIMIT, rules, NOW) == Evict(("other",))
    assert decide([other], asked(4), LIMIT, rules, NOW) == Admit()
    assert decide([other], asked(4, large=True), LIMIT, RULES, NOW) == Admit(), "where the preset allows several"
    assert decide([replace(other, pinned=True)], asked(4, large=True), LIMIT, rules, NOW) == Admit()


def test_the_limit_is_the_smallest_ceiling_and_what_the_machine_has_left() -> None:
    ceilings = [(12 * GB, "its preset's share"), (9 * GB, "Metal's recommended working set")]
    assert limit(ceilings, 3 * GB, None, GB) == Limit(9 * GB, "Metal's recommended working set", 9 * GB)
    assert limit(ceilings, 3 * GB, 2 * GB, GB).bytes == 4 * GB
    assert limit(ceilings, 3 * GB, 50 * GB, GB).bytes == 9 * GB
    assert limit(ceilings, 0, GB // 2, GB).bytes == 0


def test_a_model_is_charged_its_estimate_then_what_it_holds_and_may_still_take() -> None:
    assert estimate(8 * GB, GB) == round(8.4 * GB) + GB + WORKER_BYTES
    assert charge(5 * GB, None, GB, 0) == 5 * GB
    assert charge(5 * GB, 3 * GB, GB, GB // 4) == 3 * GB + 3 * GB // 4
    assert charge(5 * GB, 3 * GB, GB, 2 * GB) == 3 * GB


def test_an_unused_model_expires_and_one_without_a_ttl_does_not() -> None:
    entries = [
        entry("late", ttl_seconds=60.0, last_used=NOW - 60),
        entry("fresh", ttl_seconds=60.0, last_used=NOW - 59),
        entry("stays", ttl_seconds=None, last_used=0),
        entry("busy", ttl_seconds=60.0, users=1),
        entry("pinned", ttl_seconds=60.0, pinned=True),
        entry("going", ttl_seconds=60.0, moving=True),
    ]
    assert expired(entries, NOW) == ["late"]


def test_under_pressure_idle_models_go_after_their_residency_and_all_of_them_when_it_is_critical() -> None:
    entries = [
        entry("a", 1, loaded_at=NOW - 1, last_used=NOW - 1),
        entry("b", 4, last_used=NOW - 100),
        entry("c", 4, users=1),
        entry("d", 4, pinned=True),
    ]
    assert relief(entries, RULES, NOW, critical=True) == ["b", "a"]
    assert relief(entries, RULES, NOW, critical=False) == ["b"]
    assert relief(entries[:1], RULES, NOW, critical=False) == []


SOON, LATE = NOW - 2, NOW - SURPLUS_SECONDS


@pytest.mark.parametrize(
    ("entries", "since", "expected"),
    [
        ([], None, None),
        ([entry("a", 10)], None, None),
        ([entry("a", 10.1)], None, Shrink()),
        ([entry("a", 10.1)], SOON, Evict(("a",))),
        ([entry("a", 8), entry("b", 8, leaving=True, moving=True)], SOON, None),
        ([entry("busy", 9, users=1), entry("b", 2), entry("c", 2, last_used=NOW)], SOON, Evict(("b", "c"))),
        ([entry("busy", 7, users=1), entry("b", 2), entry("c", 2, last_used=NOW)], SOON, Evict(("b",))),
        ([entry("busy", 12, users=1), entry("b", 1)], SOON, Evict(("b",))),
        ([entry("busy", 12, users=1), entry("kept", 1, pinned=True), entry("new", 1, moving=True)], LATE, Evict(())),
        ([entry("busy", 8, users=1), entry("young", 3, loaded_at=NOW - 1)], SOON, Evict(())),
        ([entry("busy", 8, users=1), entry("young", 3, loaded_at=NOW - 1)], LATE, Evict(("young",))),
        ([entry("young", 8, loaded_at=NOW - 1), entry("old", 3, last_used=NOW)], LATE, Evict(("old",))),
    ],
)
def test_models_that_grow_beyond_the_limit_are_asked_first_and_idle_ones_unloaded_then(
    entries: list[Entry], since: float | None, expected: Shrink | Evict | None
) -> None:
    assert surplus(entries, LIMIT, RULES, NOW, since=since) == expected


def test_what_other_programs_take_is_no_reason_to_unload() -> None:
    assert surplus([entry("a", 8)], replace(LIMIT, bytes=GB), RULES, NOW, since=SOON) is None


def _entries() -> st.SearchStrategy[list[Entry]]:
    one = st.builds(
        Entry,
        model=st.uuids().map(str),
        bytes=st.integers(0, 12),
        users=st.integers(0, 1),
        pinned=st.booleans(),
        moving=st.booleans(),
        loaded_at=st.floats(900, 1000),
        last_used=st.floats(900, 1000),
    )
    leaving = one.map(lambda entry: replace(entry, users=0, moving=True, leaving=True))
    return st.lists(one | leaving, max_size=6, unique_by=lambda entry: entry.model)


@given(entries=_entries(), since=st.none() | st.floats(900, 1000))
def test_a_surplus_ends_with_as_few_unloaded_as_need_be_and_none_in_use(
    entries: list[Entry], since: float | None
) -> None:
    limit = Limit(20, "test", 20)
    answer = surplus(entries, limit, RULES, NOW, since=since)
    stays = {entry.model: entry for entry in entries if not entry.leaving}
    if sum(entry.bytes for entry in stays.values()) <= limit.ceiling_bytes:
        assert answer is None
        return
    if since is None:
        assert answer == Shrink()
        return
    assert isinstance(answer, Evict)
    gone = [stays.pop(model) for model in answer.models]
    assert not any(entry.users or entry.moving or entry.pinned for entry in gone)
    young = [entry for entry in gone if NOW - entry.loaded_at < RULES.minimum_residency_seconds]
    assert not young or NOW - since >= SURPLUS_SECONDS
    left = sum(entry.bytes for entry in stays.values())
    if left > limit.ceiling_bytes:  # all that may go have gone
        late = NOW - since >= SURPLUS_SECONDS
        for entry in stays.values():
            settled = late or NOW - entry.loaded_at >= RULES.minimum_residency_seconds
            assert entry.users or entry.moving or entry.pinned or not settled
    else:
        for entry in gone:
            assert left + entry.bytes > limit.ceiling_bytes, "it need not have gone"
    again = surplus([*stays.values()], limit, RULES, NOW, since=since)
    assert again is None or again == Evict(())


def test_who_holds_memory_is_named_the_most_first() -> None:
    assert holders([entry("a", 1), entry("b", 4)]) == "b (4.0 GB), a (1.0 GB)"
    assert holders([]) == "no model is loaded"


class Pool(RuleBasedStateMachine):
    """Models come, are used, are pinned and go, and the limit moves. Every decision is carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.entries: dict[str, Entry] = {}
        self.limit = Limit(20, "test", 20)
        self.rules = Rules(minimum_residency_seconds=10.0, one_large=True)
        self.numbered = 0

    def change(self, pick: int, **fields: object) -> None:
        model = sorted(self.entries)[pick % len(self.entries)]
        self.entries[model] = replace(self.entries[model], **fields)  # type: ignore[arg-type]

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(size=st.integers(0, 20))
    def the_machine_has_more_or_less(self, size: int) -> None:
        self.limit = replace(self.limit, bytes=size)

    @precondition(lambda self: self.entries)
    @rule(pick=st.integers(0, 99), users=st.integers(0, 2))
    def used(self, pick: int, users: int) -> None:
        self.change(pick, users=users, last_used=self.now)

    @precondition(lambda self: self.entries)
    @rule(pick=st.integers(0, 99), pinned=st.booleans())
    def pin(self, pick: int, pinned: bool) -> None:
        self.change(pick, pinned=pinned)

    @precondition(lambda self: self.entries)
    @rule(pick=st.integers(0, 99), moving=st.booleans())
    def moves(self, pick: int, moving: bool) -> None:
        self.change(pick, moving=moving)

    @rule(size=st.integers(1, 25), large=st.booleans(), yields=st.sampled_from(["no", "if need be", "always"]))
    def load(self, size: int, large: bool, yields: str) -> None:
        self.numbered += 1
        wanted = Wanted(f"m{self.numbered}", size, large)
        before = dict(self.entries)
        decision = self.decide(wanted)
        if isinstance(decision, Evict):
            assert decision.models
            assert len(set(decision.models)) == len(decision.models)
            for model in decision.models:
                self.check_victim(before[model], wanted)
                del self.entries[model]
            decision = self.decide(wanted)
            assert isinstance(decision, Admit), "models that leave for a load free enough"
        if isinstance(decision, Refuse):
            assert decision.sentence
            assert decision.never == (size > self.limit.ceiling_bytes)
            assert decision.never or decision.retry_after_seconds > 0
            return
        assert sum(entry.bytes for entry in self.entries.values()) + size <= self.limit.bytes
        assert not large or not any(entry.large and not entry.pinned for entry in self.entries.values())
        self.entries[wanted.model] = Entry(
            wanted.model,
            size,
            large=large,
            yields=yields == "if need be",
            gives_way=yields == "always" and not large,
            loaded_at=self.now,
            last_used=self.now,
        )

    def decide(self, wanted: Wanted) -> Decision:
        decision = decide([*self.entries.values()], wanted, self.limit, self.rules, self.now)
        assert decision == decide([*self.entries.values()], wanted, self.limit, self.rules, self.now)
        return decision

    def check_victim(self, victim: Entry, wanted: Wanted) -> None:
        assert not victim.users
        assert not victim.moving
        assert not victim.pinned or ((victim.yields or victim.gives_way) and wanted.large)
        assert victim.pinned or victim.gives_way or self.now - victim.loaded_at >= self.rules.minimum_residency_seconds


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=examples(60), stateful_step_count=40)
