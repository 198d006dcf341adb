"""The prefix cache of one worker: look up, restore, keep. On the model's thread; the disk has a thread of its own.

open → (found) → restore → at_checkpoint … → keep … → close      one request
tend                                                             every tick: hands to the disk what is due
flush                                                            before the process ends

`session` is one request, `lookups` says who waits for the disk, `keeping` makes entries of what a row computed, and `writeback`
decides what goes to SSD. The loop holds a `guarded.GuardedCache`, which turns what fails here into a miss.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.kvstore.directory import LAYOUT, Directory
from engine.types import CacheNote, KvReport
from engine.worker.caches import Cache
from engine.worker.kvcache import chunks, records
from engine.worker.kvcache.io_thread import IoThread
from engine.worker.kvcache.keeping import Keeping
from engine.worker.kvcache.lookups import Lookups
from engine.worker.kvcache.memory_tier import Kept, MemoryTier
from engine.worker.kvcache.messages import Answer, Clear, Find, Found, Read, Saved, Seen, Touch
from engine.worker.kvcache.planner import Match, plan
from engine.worker.kvcache.session import CacheRequest, Session
from engine.worker.kvcache.writeback import Writeback

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """What decides a model's KV besides tokens: a fingerprint of its weights and code, and how the KV is quantised."""

    fingerprint: str
    quantisation: str


class PrefixCache:
    """Raises `records.Unsupported` for a model whose cache cannot be kept. `open_directory` None: memory only.

    `new_cache` makes one row's empty layers. `post` takes the answers of the disk's thread, on that thread. `off` says why
    there is no directory.
    """

    def __init__(
        self,
        *,
        new_cache: Callable[[], Cache],
        identity: Identity,
        memory_bytes: int,
        open_directory: Callable[[], Directory] | None,
        post: Callable[[Answer], None],
        off: str = "memory only",
    ) -> None:
        self._new_cache, self._identity, self._off = new_cache, identity, off
        self.has_state = records.has_state(new_cache())
        """Whether the model has layers that can only be kept as checkpoints."""
        self._memory = MemoryTier(memory_bytes)
        self._io = None if open_directory is None else IoThread(open_directory, post, ahead_bytes=memory_bytes)
        self._lookups = Lookups()
        self._writeback = Writeback(self._memory, self._io, records.as_tensors)
        self._keeping = Keeping(self._memory, self._writeback, has_state=self.has_state)
        self._sessions: dict[str, Session] = {}
        self._epoch = 0
        self._report = KvReport()

    # One request -----------------------------------------------------------------------------------------------------

    def open(self, request: CacheRequest, tokens: Sequence[int]) -> bool:
        """Begin to look up the prompt `tokens`. False when SSD is asked: `found` says when it is ready."""
        root = chunks.root(
            fingerprint=self._identity.fingerprint,
            quantisation=self._identity.quantisation,
            layout=LAYOUT,
            tenant=request.tenant,
        )
        session = Session.of(request, root, tokens, self._epoch)
        self._sessions[request.id] = session
        self._report.prompts += 1
        in_memory = self._plan(session)
        if not self._writeback.is_on or in_memory.tokens >= session.restorable:
            self._settle(session, in_memory)
            return True
        self._follow_or_ask(session, in_memory)
        return False

    def ready(self, request_id: str) -> bool:
        """Whether a row may begin. False: its KV is read first, when no other row reads as it begins; `found` says when to
        try again."""
        session = self._sessions.get(request_id)
        if session is None or not session.late:
            return True
        if self._lookups.turn_is_free:
            session.late = False
            self._ask(session, self._plan(session), now=True)
            self._lookups.take_turn(request_id)
        else:
            self._lookups.wait_for_turn(request_id)
        return False

    def note(self, request_id: str) -> CacheNote:
        """What the lookup found, for the user."""
        session = self._sessions.get(request_id)
        return CacheNote(reason="disabled") if session is None else session.note

    def restore(self, request_id: str, *, capacity: int) -> tuple[Cache, int] | None:
        """A new cache with the longest beginning that memory holds now, and its tokens. None when there is nothing.

        It has room for `capacity` tokens.
        """
        session = self._sessions.get(request_id)
        if session is None:
            return None
        self._settle(session, self._plan(session), session.match.matched)
        match, restored = session.match, None
        session.began = time.monotonic()
        if match.tokens:
            restored = self._filled(match, capacity)
        self._unpin(session)
        if restored is not None:
            self._note_use(match)
        elif match.tokens:
            self._settle(session, Match(0, match.matched, ()))
        if self.has_state and session.request.store:
            session.plan_checkpoints(self._memory)
        return None if restored is None else (restored, match.tokens)

    def checkpoints_at(self, request_id: str) -> tuple[int, ...]:
        """Positions at which prefill is to pause for `at_checkpoint`."""
        session = self._sessions.get(request_id)
        return () if session is None else tuple(checkpoint.position for checkpoint in session.checkpoints)

    def at_checkpoint(self, request_id: str, cache: Cache, position: int) -> None:
        """Prefill has reached `position`: take the checkpoint if one is planned there."""
        session = self._sessions.get(request_id)
        if session is None or session.epoch != self._epoch or not records.holds(cache, position):
            return
        for checkpoint in session.checkpoints:
            if checkpoint.position == position:
                tokens = session.prompt.tokens[:position]
                self._keeping.state(session, tokens, cache, tip=checkpoint.tip, wanted=checkpoint.wanted)

    def keep(self, request_id: str, tokens: Sequence[int], cache: Cache, *, ended: bool, forced: bool = False) -> bool:
        """Keep `tokens`, all of which `cache` holds: complete blocks, and once the sequence has `ended` also its tail and its
        state. `forced`: the row is swapped out and will be back. Returns whether they could be kept."""
        session = self._sessions.get(request_id)
        if session is None or not session.request.store or not tokens or session.epoch != self._epoch:
            return False
        if not records.holds(cache, len(tokens)):
            logger.warning("a sequence's cache does not hold its tokens: not kept", extra={"action": "kv_not_kept"})
            return False
        self._keeping.sequence(session, tokens, cache, ended=ended, forced=forced)
        return True

    def close(self, request_id: str) -> None:
        """The request is over, whatever became of it."""
        if (session := self._sessions.pop(request_id, None)) is not None:
            self._unpin(session)

    def forget(self, request_id: str) -> None:
        """Something failed for the request: look it up and keep it no more. Makes no room, which may be what failed."""
        if (session := self._sessions.pop(request_id, None)) is not None:
            self._release(session)

    # Answers of the disk's thread -----------------------------------------------------------------------------------

    def read(self, answer: Read) -> None:
        """Take in a file that was read."""
        if answer.epoch != self._epoch:
            return
        key, session = answer.entry.key, self._sessions.get(answer.id)
        if key not in self._memory:
            # Pinned before it is taken in: otherwise it might be the first to be dropped.
            pins = 0 if session is None else 1
            content = records.as_arrays(answer.tensors) if answer.entry.kind == "checkpoint" else answer.tensors
            self._writeback.add(Kept(answer.entry, content, answer.facts, dirty=False, admitted=True, pins=pins))
            if session is not None:
                session.pinned.append(key)
        elif session is not None:
            self._pin(session, [key])
        if session is not None:
            session.fetched.add(key)

    def waiting_for(self, request_id: str) -> tuple[list[str], list[str]]:
        """The requests that wait for the `Found` of this one, and the rows that wait for their turn to read after it."""
        return self._lookups.waiting_for(request_id)

    def found(self, answer: Found) -> list[str]:
        """Everything that a request asked for is here. Returns the requests that need not wait any longer."""
        followers, behind = self._lookups.answered(answer.id)
        session = self._sessions.get(answer.id)
        if session is not None:
            self._settle_found(session, answer)
        elif self._io is not None:
            self._io.release(answer.read_bytes)
        for request_id, lacking in followers.items():
            if (follower := self._sessions.get(request_id)) is not None:
                # If the block it lacked came, the next may come for another too. If not, nobody else can get it either.
                ask = self._follow_or_ask if lacking in self._memory else self._ask
                ask(follower, self._plan(follower))
        return [*([answer.id] if session is not None else []), *behind]

    def seen(self, answer: Seen) -> None:
        """Parts of a prompt had been asked for before: what is kept of them has earned its place on SSD."""
        if (session := self._sessions.get(answer.id)) is not None:
            session.seen = answer.keys
        for key in answer.keys:
            self._writeback.admit(key)

    def saved(self, answer: Saved) -> None:
        """A file is written, or was refused."""
        self._writeback.saved(answer)

    def cleared(self) -> None:
        """SSD is empty. What was refused because it was being emptied can be written again."""
        self._writeback.forget_refusals()

    # The tiers -------------------------------------------------------------------------------------------------------

    @property
    def report(self) -> KvReport:
        """What the tiers hold, and what they did since the start."""
        report = self._report
        report.memory_bytes, report.memory_entries = self._memory.bytes, len(self._memory)
        report.checkpoints, report.spilled_away = self._keeping.checkpoints, self._writeback.spilled_away
        if self._io is None:
            report.off = self._off
            return report
        traffic, contents = self._io.traffic, self._io.traffic.contents
        report.disk_bytes, report.disk_entries = contents.bytes, contents.entries
        report.written_today = contents.written_today
        report.read_bytes, report.written_bytes = traffic.read_bytes, traffic.written_bytes
        report.refused, report.corrupt = traffic.refused, traffic.corrupt
        report.off = self._io.off or ""
        return report

    def tend(self, *, busy: bool) -> float | None:
        """Hand to the disk what is due. Returns seconds until the next call; None: not before something happens."""
        return self._writeback.tend(busy=busy, now=time.monotonic())

    def free_memory(self) -> None:
        """Drop what no request uses now. What earned its place on SSD is written first, within bounds."""
        self._writeback.shrink(0)

    def clear(self) -> None:
        """Forget everything: in memory now, and on SSD when `Cleared` comes."""
        self._epoch += 1  # what is being read, pinned or computed now belongs to the time before
        self._drop_all()
        if self._io is not None:
            self._io.order(Clear())

    def abandon(self) -> None:
        """Keep nothing any more."""
        self._sessions.clear()
        self._drop_all()

    def flush(self, seconds: float, answers: Callable[[], Answer | None]) -> bool:
        """Write everything that is not on SSD yet: see `Writeback.flush`."""
        return self._writeback.flush(seconds, answers)

    # Looking up ------------------------------------------------------------------------------------------------------

    def _plan(self, session: Session) -> Match:
        return plan(session.prompt, self._memory, has_state=self.has_state)

    def _settle(self, session: Session, match: Match, matched: int = 0) -> None:
        relaid = self._io is not None and self._io.relaid
        session.settle(match, matched, refused=self._writeback.refused, relaid=relaid)

    def _follow_or_ask(self, session: Session, in_memory: Match) -> None:
        """Wait for a block that is being read for another, rather than read it again."""
        lacking = next((key for key in session.block_keys if key not in self._memory), b"")
        if not self._lookups.follow(session.request.id, lacking):
            self._ask(session, in_memory)

    def _ask(self, session: Session, in_memory: Match, *, now: bool = False) -> None:
        assert self._io is not None
        # What is here stays here until it is used.
        self._pin(session, in_memory.keys)
        # When it asks a second time, it has noted its keys itself.
        sight = session.sights(has_state=self.has_state) if session.request.store and not now else ()
        snapshot = self._memory.snapshot(session.prompt.parents)
        self._io.ask(
            Find(
                session.request.id,
                self._epoch,
                session.prompt,
                snapshot,
                in_memory.tokens,
                self.has_state,
                sight,
                now=now,
            )
        )
        self._lookups.lead(session.request.id, frozenset(session.block_keys))

    def _settle_found(self, session: Session, answer: Found) -> None:
        session.corrupt, session.late = answer.corrupt, answer.late
        session.ahead_bytes += answer.read_bytes
        if answer.late:
            session.fetched.update(key for key in answer.match.keys if key not in self._memory)
        self._pin(session, [key for key in answer.match.keys if key in self._memory])
        current = answer.epoch == self._epoch
        match = answer.match if answer.late and current else self._plan(session)
        self._settle(session, match, answer.match.matched if current else 0)

    def _filled(self, match: Match, capacity: int) -> Cache | None:
        """A row's cache made of a match; None when what is kept does not fit the model."""
        blocks = [(self._memory.get(piece.key), piece.end - piece.start) for piece in match.pieces]
        state = None if match.checkpoint is None else self._memory.get(match.checkpoint)
        cache = self._new_cache()
        try:
            records.restore(
                cache,
                [(kept.content, take) for kept, take in blocks if kept is not None],
                None if state is None else (dict(state.content), state.facts),
                tokens=match.tokens,
                capacity=capacity,
            )
        except ValueError as error:
            # Not what was put in: such entries must not be found again.
            logger.warning("kept KV does not fit the model: %s", error, extra={"action": "kv_unfit"})
            for key in match.keys:
                self._memory.drop(key)
            return None
        return cache

    def _note_use(self, match: Match) -> None:
        self._memory.touch(match.keys)
        for key in match.keys:
            self._writeback.admit(key)
        if self._io is not None:
            self._io.order(Touch(tuple(match.keys)))
        self._report.restored_tokens += match.tokens

    # Memory ----------------------------------------------------------------------------------------------------------

    def _pin(self, session: Session, keys: Sequence[bytes]) -> None:
        session.pinned += self._memory.pin(keys)

    def _unpin(self, session: Session) -> None:
        self._release(session)
        self._writeback.shrink(self._memory.limit_bytes)

    def _release(self, session: Session) -> None:
        self._memory.unpin(session.pinned)
        session.pinned.clear()
        if self._io is not None:
            self._io.release(session.ahead_bytes)
        session.ahead_bytes = 0

    def _drop_all(self) -> None:
        self._memory.clear()
        self._writeback.clear()
