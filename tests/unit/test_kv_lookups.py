"""Which requests wait for the disk, and for whom. Whatever happens, nobody waits for an answer that does not come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.worker.kvcache.lookups import Lookups


def test_a_block_that_is_being_read_is_waited_for() -> None:
    lookups = Lookups()
    assert not lookups.follow("b", b"2")
    lookups.lead("a", frozenset({b"1", b"2"}))
    assert lookups.follow("b", b"2")
    assert not lookups.follow("c", b"3")
    assert lookups.waiting_for("a") == (["a", "b"], [])
    assert lookups.answered("a") == ({"b": b"2"}, [])
    assert not lookups.follow("d", b"2")
    assert lookups.answered("a") == ({}, [])


def test_rows_that_read_as_they_begin_take_turns() -> None:
    lookups = Lookups()
    lookups.lead("a", frozenset({b"1"}))
    lookups.take_turn("a")
    for row in ("b", "c"):
        assert not lookups.turn_is_free
        lookups.wait_for_turn(row)
    lookups.lead("other", frozenset({b"9"}))
    assert lookups.answered("other") == ({}, [])
    assert lookups.waiting_for("a") == (["a"], ["b", "c"])
    assert lookups.answered("a") == ({}, ["b", "c"])
    assert lookups.turn_is_free


@given(st.lists(st.tuples(st.sampled_from(["open", "late", "answer"]), st.integers(0, 5)), max_size=60), st.data())
def test_every_waiting_request_is_named_by_exactly_one_answer(
    steps: list[tuple[str, int]], data: st.DataObject
) -> None:
    lookups, leaders, waiting = Lookups(), set[str](), set[str]()
    for number, (step, block) in enumerate(steps):
        name = f"r{number}"
        if step == "open":
            if not lookups.follow(name, bytes([block])):
                lookups.lead(name, frozenset({bytes([block]), bytes([block + 1])}))
                leaders.add(name)
            waiting.add(name)
        elif step == "late":
            if lookups.turn_is_free:
                lookups.lead(name, frozenset({bytes([block])}))
                lookups.take_turn(name)
                leaders.add(name)
            else:
                lookups.wait_for_turn(name)
            waiting.add(name)
        elif leaders:
            answered = data.draw(st.sampled_from(sorted(leaders)))
            asked, turns = lookups.waiting_for(answered)
            followers, behind = lookups.answered(answered)
            assert [*asked, *turns] == [answered, *followers, *behind]
            assert set(asked) | set(turns) <= waiting
            waiting -= {*asked, *turns}
            leaders.remove(answered)
    for leader in sorted(leaders):
        followers, behind = lookups.answered(leader)
        waiting -= {leader, *followers, *behind}
    assert not waiting
