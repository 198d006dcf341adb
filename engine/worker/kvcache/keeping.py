"""What a row has computed becomes entries of the memory tier. On the model's thread."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from engine.kvstore.index import Entry
from engine.worker.caches import Cache
from engine.worker.kvcache import admission, chunks, records
from engine.worker.kvcache.memory_tier import Content, Kept, MemoryTier, content_bytes
from engine.worker.kvcache.planner import Prompt
from engine.worker.kvcache.session import Session
from engine.worker.kvcache.writeback import Writeback


class Keeping:
    """Owned by the cache. `has_state`: the model has layers that are kept as checkpoints."""

    def __init__(self, memory: MemoryTier, writeback: Writeback, *, has_state: bool) -> None:
        self._memory, self._writeback, self._has_state = memory, writeback, has_state
        self._speed = admission.PrefillSpeed()
        self.checkpoints = 0
        """Taken since the start."""

    def sequence(self, session: Session, tokens: Sequence[int], cache: Cache, *, ended: bool, forced: bool) -> None:
        """Keep the complete blocks of `tokens`, and once the sequence has `ended` also its tail and its state. `forced`: the row
        is swapped out and will be back."""
        if not session.kept_tokens and session.began:
            self._speed.measure(len(tokens) - session.match.tokens, time.monotonic() - session.began)
        end = chunks.whole(len(tokens), session.prompt.media)  # a cancelled prefill may end inside a medium
        sequence = Prompt.of(session.prompt.root, chunks.as_tokens(tokens[:end]), session.prompt.media)
        keys = [block.key for block in sequence.blocks]
        self._memory.touch(keys)  # before room is made for the rest of the sequence
        self._blocks(session, sequence, cache, total=len(tokens), ended=ended, forced=forced)
        may_take = self._has_state and session.checkpoints_taken < admission.MAX_CHECKPOINTS
        if ended and end == len(tokens) and may_take:
            keys.append(self.state(session, sequence.tokens, cache, tip=True, wanted=forced))
            self._drop_earlier_tips(session)
        self._memory.touch(keys)
        session.kept_tokens = len(tokens)

    def state(self, session: Session, tokens: chunks.Tokens, cache: Cache, *, tip: bool, wanted: bool) -> bytes:
        """Take the checkpoint after `tokens`, unless it is there. Returns its key."""
        seconds = len(tokens) * self._speed.seconds_a_token
        entry = session.checkpoint_entry(tokens, saves_seconds=seconds, tip=tip)
        session.checkpoints_taken += 1
        if not session.request.store or entry.key in self._memory:
            return entry.key
        arrays, facts = records.cut_state(cache)
        wanted = wanted or (tip and session.is_conversation)
        self._add(self._made(session, entry, arrays, facts, total_seconds=seconds, wanted=wanted))
        self.checkpoints += 1
        return entry.key

    def _blocks(
        self, session: Session, sequence: Prompt, cache: Cache, *, total: int, ended: bool, forced: bool
    ) -> None:
        """Keep the blocks of `sequence` that memory lacks. The row has computed `total` tokens."""
        total_seconds = total * self._speed.seconds_a_token
        wanted = forced or session.is_conversation
        taken = sum(kept.bytes for block in sequence.blocks if (kept := self._memory.get(block.key)) is not None)
        for block in sequence.blocks:
            if not (block.complete or ended) or block.key in self._memory:
                continue
            entry = Entry(
                block.key, "block", block.parent, block.start, block.end,
                sequence.tokens[block.start : block.end].tobytes(), chunks.inside(sequence.media, block.start, block.end),
                0, (block.end - block.start) * self._speed.seconds_a_token, tip=not block.complete,
            )  # fmt: skip
            arrays = records.cut_block(cache, block.start, block.end)
            taken += content_bytes(arrays)
            kept = self._made(session, entry, arrays, {}, total_seconds=total_seconds, wanted=wanted)
            if taken > self._memory.limit_bytes and not (kept.admitted and self._writeback.can_spill):
                break  # the sequence is larger than the tier: its beginning is the part that can be used
            self._add(kept)
            self._drop_beginnings(entry)

    def _made(
        self,
        session: Session,
        entry: Entry,
        content: Content,
        facts: Mapping[str, str],
        *,
        total_seconds: float,
        wanted: bool,
    ) -> Kept:
        """An entry that this request computed. A `wanted` one goes to SSD whatever it costs."""
        size = content_bytes(content)
        worth = admission.is_worth(total_seconds=total_seconds, seconds=entry.saves_seconds, size=size)
        return Kept(entry, content, facts, dirty=True, admitted=wanted or worth or entry.key in session.seen)

    def _add(self, kept: Kept) -> None:
        records.begin(kept.content)
        self._writeback.add(kept)
        if kept.admitted:
            self._writeback.schedule(kept)

    def _drop_beginnings(self, longer: Entry) -> None:
        """Shorter blocks that the new one begins with are not needed any more."""
        for shorter in self._memory.children([longer.parent], "block"):
            kept = self._memory.get(shorter.key)
            if kept is not None and not kept.pins and longer.extends(shorter):
                self._writeback.outgrown(shorter.key)

    def _drop_earlier_tips(self, session: Session) -> None:
        """The conversation has continued: the ends of its earlier turns are not needed again, and need not go to SSD."""
        for key in session.superseded(self._memory.children(session.prompt.parents, "checkpoint")):
            kept = self._memory.get(key)
            if kept is not None and kept.dirty and not kept.pins:
                self._writeback.outgrown(key)
