"""What a user is told about a lookup, where checkpoints are planned, and how prompts are cut: decided without disk and model."""

from __future__ import annotations

import numpy as np
import pytest

from engine.kvstore.index import Entry
from engine.types import CacheNote
from engine.worker.kvcache import admission, chunks
from engine.worker.kvcache.admission import Checkpoint, PrefillSpeed, checkpoints
from engine.worker.kvcache.chunks import BLOCK_TOKENS, Media
from engine.worker.kvcache.memory_tier import Kept, MemoryTier
from engine.worker.kvcache.planner import Match, plan
from engine.worker.kvcache.session import CacheRequest, Session

ROOT = b"r" * 32
TOKENS = [*range(600)]


def session(tokens: list[int] = TOKENS, media: tuple[Media, ...] = (), **places: int) -> Session:
    places = {"system": 0, "document": 0, "boundary": 0, **places}
    request = CacheRequest("r", media, tenant="", store=True, role_at=lambda at: f"role{at}", **places)
    return Session.of(request, ROOT, tokens, epoch=0)


def remembered(tokens: list[int] = TOKENS, *, blocks: int = 99) -> MemoryTier:
    """A tier that holds the first `blocks` of a prompt."""
    tier = MemoryTier(1 << 20)
    for block in session(tokens).prompt.blocks[:blocks]:
        taken = np.asarray(tokens[block.start : block.end], "<u4").tobytes()
        entry = Entry(
            block.key, "block", block.parent, block.start, block.end, taken, (), 0, 0.0, tip=not block.complete
        )
        tier.add(Kept(entry, {}, {}, dirty=False))
    return tier


def settled(
    one: Session, tier: MemoryTier, *, refused: frozenset[bytes] = frozenset(), relaid: bool = False, matched: int = 0
) -> CacheNote:
    one.settle(plan(one.prompt, tier, has_state=False), matched, refused=refused, relaid=relaid)
    return one.note


def test_a_prompt_that_is_known_whole_has_no_reason() -> None:
    assert settled(session(), remembered()) == CacheNote(tokens=599, tier="ram", reason="")


def test_a_prompt_that_nobody_has_asked_before_is_cold() -> None:
    assert settled(session(), MemoryTier(1)) == CacheNote(reason="cold")


def test_after_another_layout_was_erased_that_is_the_reason() -> None:
    assert settled(session(), MemoryTier(1), relaid=True).reason == "layout"
    assert settled(session(), remembered(blocks=1), relaid=True).reason == "diverged_at(256, role256)"


def test_a_prompt_that_parts_from_a_known_one_says_where_and_in_which_message() -> None:
    other = [*TOKENS[:300], *range(5000, 5300)]
    assert settled(session(other), remembered()) == CacheNote(
        tokens=300, tier="ram", reason="diverged_at(300, role300)"
    )


def test_more_may_have_matched_before_than_can_be_restored_now() -> None:
    assert settled(session(), remembered(blocks=1), matched=512).reason == "diverged_at(512, role512)"


def test_a_damaged_file_comes_before_all_other_reasons() -> None:
    one = session()
    one.corrupt = True
    assert settled(one, remembered(blocks=1), refused=frozenset(one.block_keys)).reason == "corrupt"


def test_a_block_that_could_not_be_written_is_a_quota_and_one_that_was_seen_is_evicted() -> None:
    one = session()
    missing = frozenset(one.block_keys[1:2])
    assert settled(one, remembered(blocks=1)).reason == "diverged_at(256, role256)"
    one.seen = missing
    assert settled(one, remembered(blocks=1)).reason == "evicted"
    assert settled(one, remembered(blocks=1), refused=missing).reason == "quota"


def test_what_came_from_ssd_says_so() -> None:
    one, tier = session(), remembered()
    one.fetched = {one.block_keys[0]}
    assert settled(one, tier).tier == "ssd"


def test_a_position_inside_a_medium_is_no_place_to_cut() -> None:
    medium = Media(100, 200, b"m" * 32)
    request = session(media=(medium,), system=150, document=200, boundary=100).request
    assert (request.system, request.document, request.boundary) == (0, 200, 100)


def test_a_conversation_continues_beyond_the_system_message_that_many_share() -> None:
    one = session(system=300)
    for restored, expected in ((0, False), (299, False), (364, False), (365, True)):
        one.match = Match(restored, restored, ())
        assert one.is_conversation is expected


def test_checkpoints_that_are_kept_are_not_planned_again() -> None:
    one = session(system=200, boundary=590)
    one.match = Match(0, 0, ())
    one.plan_checkpoints(set())
    assert one.checkpoints == (Checkpoint(200, "system"), Checkpoint(590, "boundary"))
    one.plan_checkpoints({one.checkpoint_entry(one.prompt.tokens[:200]).key})
    assert one.checkpoints == (Checkpoint(590, "boundary"),)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ({}, ()),
        ({"boundary": 63}, ()),
        ({"boundary": 64}, (Checkpoint(64, "boundary"),)),
        ({"document": 511}, ()),
        ({"document": 512}, (Checkpoint(512, "document"),)),
        ({"document": 600, "system": 64}, (Checkpoint(64, "system"),)),
        ({"matched": 100, "system": 150}, (Checkpoint(100, "divergence"),)),
        ({"matched": 100, "system": 164}, (Checkpoint(100, "divergence"), Checkpoint(164, "system"))),
        ({"matched": 400, "system": 164, "boundary": 600}, (Checkpoint(164, "system"), Checkpoint(400, "divergence"))),
        ({"restored": 300, "matched": 363, "system": 300, "boundary": 300}, ()),
    ],
)  # fmt: skip
def test_where_checkpoints_are_taken(places: dict[str, int], expected: tuple[Checkpoint, ...]) -> None:
    given = {"system": 0, "document": 0, "boundary": 0, "restored": 0, "matched": 0, **places}
    assert checkpoints(**given, known=()) == expected  # type: ignore[arg-type]
    assert len(expected) < admission.MAX_CHECKPOINTS  # one is left for the answer's end


def test_only_tips_of_earlier_turns_are_superseded() -> None:
    one = session(boundary=500)
    one.match = Match(400, 400, ())

    def checkpoint(position: int, *, tip: bool = True, tokens: list[int] = TOKENS) -> Entry:
        return session(tokens).checkpoint_entry(chunks.as_tokens(tokens[:position]), tip=tip)

    earlier, later, boundary = checkpoint(300), checkpoint(450), checkpoint(500)
    another = checkpoint(300, tokens=[*TOKENS[:299], 9999, *TOKENS[300:]])
    no_tip = checkpoint(310, tip=False)
    assert one.superseded([earlier, later, boundary, another, no_tip]) == [earlier.key]


def test_prefill_speed_is_smoothed_and_short_prompts_do_not_count() -> None:
    speed = PrefillSpeed()
    speed.measure(admission.MIN_MEASURED - 1, 100.0)
    assert speed.seconds_a_token == 0.0
    speed.measure(100, 1.0)
    speed.measure(100, 2.0)
    assert speed.seconds_a_token == pytest.approx(0.7 * 0.01 + 0.3 * 0.02)


def test_an_entry_is_worth_its_bytes_when_its_prefill_was_slow() -> None:
    second = admission.WORTH_BYTES_A_SECOND
    assert admission.is_worth(total_seconds=2.0, seconds=1.0, size=second)
    assert not admission.is_worth(total_seconds=2.0, seconds=1.0, size=second + 1)
    assert not admission.is_worth(total_seconds=1.9, seconds=1.0, size=1)


def test_where_a_prompt_is_cut_depends_only_on_what_stands_before() -> None:
    rng = np.random.default_rng(1)
    ids = chunks.as_tokens(rng.integers(0, 1000, 1500).tolist())
    medium = Media(200, 300, b"m" * 32)
    whole = chunks.blocks(b"root", ids, (medium,))
    assert [(block.start, block.end) for block in whole][:2] == [(0, 300), (300, 300 + BLOCK_TOKENS)]
    shorter = chunks.blocks(b"root", ids[:900], (medium,))
    assert [block.key for block in shorter if block.complete] == [block.key for block in whole][: len(shorter) - 1]


def test_what_was_not_used_for_long_leaves_memory_also_behind_what_is_nowhere_else() -> None:
    tier = MemoryTier(1 << 20)
    for name, dirty in ((b"new", True), (b"old", False), (b"pinned", False)):
        entry = Entry(name, "block", b"root", 0, 1, b"", (), 0, 0.0, tip=False)
        tier.add(Kept(entry, {}, {}, dirty=dirty, pins=int(name == b"pinned"), used=0.0))
    tier.add(Kept(Entry(b"now", "block", b"root", 0, 1, b"", (), 0, 0.0, tip=False), {}, {}, dirty=False))
    tier.forget(60.0)
    assert tier.known([b"new", b"old", b"pinned", b"now"]) == {b"new", b"pinned", b"now"}
