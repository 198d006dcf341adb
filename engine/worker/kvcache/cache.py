"""The prefix cache as the worker's loop sees it: look up, restore, keep. On the model's thread; the disk is another's.

open → (found) → restore → at_checkpoint … → keep … → close   one request
tend                                                             every tick: hands to the disk what is due
flush                                                            before the process ends
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Final, Literal, ParamSpec, TypeVar

from engine.kvstore.directory import LAYOUT, Directory, begins
from engine.kvstore.index import Entry, Media
from engine.types import CacheNote, KvReport
from engine.worker.caches import Cache
from engine.worker.kvcache import admission, chunks, records
from engine.worker.kvcache.io_thread import Answer, Clear, Find, Found, IoThread, Read, Save, Saved, Seen, Touch
from engine.worker.kvcache.memory_tier import Held, MemoryTier
from engine.worker.kvcache.planner import Match, Prompt, plan

logger = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

FAULTS: Final = 3
"""Faults of ours in a row after which the cache is off."""
MEMORY_SECONDS: Final = 600.0
"""What is on SSD and was not used for this long leaves memory."""
TIP_SECONDS: Final = 20.0
"""An untouched end of a sequence goes to SSD after this long: the turns of an agent come faster."""
SAVES_AT_ONCE: Final = 2
MIN_MEASURED: Final = 32
"""Tokens of prefill from which its speed is read."""
MAX_SPILL_BYTES: Final = 512 << 20
"""What may wait for the disk after it had to leave the memory tier."""


@dataclass(frozen=True)
class Identity:
    """What decides a model's KV besides tokens: a fingerprint of its weights and code, and how the KV is quantised."""

    fingerprint: str
    quantisation: str


@dataclass
class Session:
    """One request. `system`, `document` and `boundary` are token positions (0: none); `role_at` names a token's message. `late`:
    what is on SSD is read when it begins, for `ahead_bytes` of others are waiting in memory."""

    id: str
    prompt: Prompt
    store: bool
    system: int
    document: int
    boundary: int
    role_at: Callable[[int], str]
    epoch: int
    fetched: set[bytes] = field(default_factory=set)
    seen: frozenset[bytes] = frozenset()
    corrupt: bool = False
    late: bool = False
    ahead_bytes: int = 0
    pinned: list[bytes] = field(default_factory=list)
    match: Match | None = None
    stops: tuple[admission.Stop, ...] = ()
    note: CacheNote = field(default_factory=CacheNote)
    began: float = 0.0
    checkpoints: int = 0
    written_tokens: int = 0


def _harmless(default: Any) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A method that must not take a request down with it. After a fault of ours the request it was for is looked up and kept no
    more; after `FAULTS` in a row nothing is, and `report` says so."""

    def wrap(method: Callable[P, T]) -> Callable[P, T]:
        @wraps(method)
        def careful(*args: P.args, **kwargs: P.kwargs) -> T:
            cache: Any = args[0]
            if cache.broken:
                return default  # type: ignore[no-any-return]
            try:
                return method(*args, **kwargs)
            except Exception as error:
                logger.exception("the KV cache failed", extra={"action": "kv_failed"})
                cache.fault(f"{type(error).__name__} in {method.__name__}; the log says more", args[1:2])
                return default  # type: ignore[no-any-return]

        return careful

    return wrap


class PrefixCache:
    """Raises `records.Unsupported` for a model whose cache cannot be kept. `open_directory` None: memory only.

    `new_cache` makes one row's empty layers; `post` takes the answers of the disk's thread, on that thread; `off` says why
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
        self._layout = records.layout(new_cache())
        self._memory = MemoryTier(memory_bytes)
        self._io = None if open_directory is None else IoThread(open_directory, post, ahead_bytes=memory_bytes)
        self._sessions: dict[str, Session] = {}
        self._followers: dict[str, dict[str, bytes]] = {}
        self._asked: dict[str, frozenset[bytes]] = {}
        self._reading_late = ""
        self._behind: list[str] = []
        self._due: deque[bytes] = deque()
        self._tips: dict[bytes, None] = {}
        self._saving: dict[bytes, int] = {}
        self._refused: dict[bytes, None] = {}
        self._seconds_a_token = 0.0
        self._epoch = self._faults = 0
        self.broken = ""
        """Why nothing is kept any more; "" while all is well."""
        self._report = KvReport()

    # One request -----------------------------------------------------------------------------------------------------

    @_harmless(True)
    def open(
        self,
        request_id: str,
        tokens: Sequence[int],
        media: tuple[Media, ...],
        *,
        tenant: str,
        store: bool,
        system: int,
        document: int,
        boundary: int,
        role_at: Callable[[int], str],
    ) -> bool:
        """Begin to look up a prompt. False when SSD is asked: `found` says when it is ready."""
        root = chunks.root(
            fingerprint=self._identity.fingerprint,
            quantisation=self._identity.quantisation,
            layout=LAYOUT,
            tenant=tenant,
        )
        prompt = Prompt.of(root, chunks.as_tokens(tokens), media)
        system, document, boundary = (
            place if chunks.whole(place, media) == place else 0 for place in (system, document, boundary)
        )
        session = Session(request_id, prompt, store, system, document, boundary, role_at, self._epoch)
        self._sessions[request_id] = session
        self._report.prompts += 1
        in_memory = self._plan(session)
        nothing_left = in_memory.tokens >= chunks.whole(len(prompt.tokens) - 1, media)
        if self._io is None or self._io.off is not None or nothing_left:
            self._decide(session, in_memory)
            return True
        self._ask_or_wait(session, in_memory)
        return False

    def _ask_or_wait(self, session: Session, in_memory: Match) -> None:
        """Who lacks a block that is being read for another waits for it instead of reading it again."""
        lacking = next(
            (block.key for block in session.prompt.blocks if block.complete and block.key not in self._memory), b""
        )
        leader = next((other for other, asked in self._asked.items() if lacking in asked), None)
        if leader is not None:
            self._followers[leader][session.id] = lacking
        else:
            self._ask(session, in_memory)

    def _ask(self, session: Session, in_memory: Match, *, now: bool = False) -> None:
        assert self._io is not None
        # What is here stays here until it is used.
        self._pin(session, in_memory.keys)
        snapshot = self._memory.snapshot(session.prompt.parents)
        # Asked for the second time, it has noted its keys itself.
        sight = tuple(self._sights(session)) if session.store and not now else ()
        self._followers[session.id] = {}
        self._asked[session.id] = frozenset(block.key for block in session.prompt.blocks if block.complete)
        self._io.ask(
            Find(
                session.id, self._epoch, session.prompt, snapshot, in_memory.tokens, self._layout.has_state, sight, now
            )
        )

    @_harmless(None)
    def read(self, answer: Read) -> None:
        """Take in a file that was read."""
        if answer.epoch != self._epoch:
            return
        key, session = answer.entry.key, self._sessions.get(answer.id)
        if key not in self._memory:
            # Pinned before it is taken in, or it might be the first to go.
            pins = 0 if session is None else 1
            content = records.as_arrays(answer.tensors) if answer.entry.kind == "checkpoint" else answer.tensors
            self._take(Held(answer.entry, content, answer.facts, dirty=False, admitted=True, pins=pins))
            if session is not None:
                session.pinned.append(key)
        elif session is not None:
            self._pin(session, [key])
        if session is not None:
            session.fetched.add(key)

    @_harmless(True)
    def ready(self, request_id: str) -> bool:
        """Whether a row may begin. False: its KV is read first, after that of another which is read for the same reason; `found`
        says when to try again."""
        session = self._sessions.get(request_id)
        if session is None or not session.late:
            return True
        if self._reading_late:
            self._behind.append(request_id)
        else:
            session.late = False
            self._ask(session, self._plan(session), now=True)
            self._reading_late = request_id
        return False

    def found(self, answer: Found) -> list[str]:
        """All that a request asked for is here. Returns the requests that need not wait any longer."""
        waiting = [answer.id, *self._followers.get(answer.id, {})]
        behind: list[str] = []
        if answer.id == self._reading_late:
            self._reading_late, behind, self._behind = "", self._behind, []
        return [*(self._found(answer, waiting) if not self.broken else waiting), *behind]

    def _found(self, answer: Found, waiting: list[str]) -> list[str]:
        followers = self._followers.pop(answer.id, {})
        self._asked.pop(answer.id, None)
        try:
            session = self._sessions.get(answer.id)
            if session is not None:
                session.corrupt, session.late = answer.corrupt, answer.late
                session.ahead_bytes += answer.read_bytes
                if answer.late:
                    session.fetched.update(key for key in answer.match.keys if key not in self._memory)
                self._pin(session, [key for key in answer.match.keys if key in self._memory])
                match = answer.match if answer.late and answer.epoch == self._epoch else self._plan(session)
                self._decide(session, match, answer.match.matched if answer.epoch == self._epoch else 0)
            elif self._io is not None:
                self._io.release(answer.read_bytes)
            for name, awaited in followers.items():
                if (follower := self._sessions.get(name)) is not None:
                    # What came for one may go on for all. What did not come is not there: nobody need wait for another.
                    ask = self._ask_or_wait if awaited in self._memory else self._ask
                    ask(follower, self._plan(follower))
        except Exception as error:
            logger.exception("the KV cache failed", extra={"action": "kv_failed"})
            self.fault(f"{type(error).__name__} in found; the log says more", waiting)
            return waiting
        return [answer.id] if session is not None else []

    @_harmless(None)
    def seen(self, answer: Seen) -> None:
        """Parts of a prompt had been seen before: what is kept of them has earned its place on SSD."""
        if (session := self._sessions.get(answer.id)) is not None:
            session.seen = answer.keys
        for key in answer.keys:
            self._admit(key)

    def fault(self, what: str, request_ids: Sequence[object]) -> None:
        """Something failed in here. What it was for is not looked up and kept any more."""
        for request_id in request_ids:
            if isinstance(request_id, str) and (session := self._sessions.pop(request_id, None)) is not None:
                self._unpin_all(session)  # no more: whoever makes room may be what failed
        self._faults += 1
        if self._faults >= FAULTS:
            self.broken = what
            self._sessions.clear()
            self._memory.clear()
            self._due.clear()
            self._tips.clear()

    def note(self, request_id: str) -> CacheNote:
        """What the lookup found, for the user."""
        session = self._sessions.get(request_id)
        return CacheNote(reason="disabled") if session is None else session.note

    @_harmless(None)
    def restore(self, request_id: str, *, capacity: int) -> tuple[Cache, int] | None:
        """A new cache with the longest beginning that memory holds now, and its tokens; None when there is nothing.

        Room is made for `capacity` tokens.
        """
        session = self._sessions.get(request_id)
        if session is None:
            return None
        matched = session.match.matched if session.match else 0
        self._decide(session, self._plan(session), matched)
        match = session.match
        assert match is not None
        session.began = time.monotonic()
        restored = self._filled(match, capacity) if match.tokens else None
        self._unpin(session)
        if restored is None:
            if match.tokens:
                self._decide(session, Match(0, match.matched, ()), match.matched)
            self._plan_stops(session)
            return None
        self._memory.touch(match.keys)
        for key in match.keys:
            self._admit(key)
        if self._io is not None:
            self._io.order(Touch(tuple(match.keys)))
        self._plan_stops(session)
        self._report.restored_tokens += match.tokens
        return restored, match.tokens

    def checkpoints_at(self, request_id: str) -> tuple[int, ...]:
        """Positions at which prefill is to pause for `at_checkpoint`."""
        session = self._sessions.get(request_id)
        return () if session is None else tuple(stop.position for stop in session.stops)

    @_harmless(None)
    def at_checkpoint(self, request_id: str, cache: Cache, position: int) -> None:
        """Prefill stands at a stop: take the checkpoint."""
        session = self._sessions.get(request_id)
        if session is None or session.epoch != self._epoch or not records.holds(cache, position):
            return
        for stop in session.stops:
            if stop.position == position:
                # Where two prompts part, what stands before has been wanted twice.
                wanted = stop.place == "divergence"
                self._keep_state(session, session.prompt.tokens[:position], cache, tip=stop.tip, wanted=wanted)

    @_harmless(None)
    def keep(self, request_id: str, tokens: Sequence[int], cache: Cache, *, ended: bool, forced: bool = False) -> None:
        """Keep `tokens`, all of which `cache` holds: complete blocks, and when the sequence has `ended` also its tail and
        state. `forced`: it is swapped out and will be back."""
        session = self._sessions.get(request_id)
        if session is None or not session.store or not tokens or session.epoch != self._epoch:
            return
        if not records.holds(cache, len(tokens)):
            logger.warning("a sequence's cache does not hold its tokens: not kept", extra={"action": "kv_not_kept"})
            return
        if not session.written_tokens and session.began:
            self._measure(session, len(tokens))
        stop = chunks.whole(len(tokens), session.prompt.media)  # of a prefill that was cancelled inside a medium
        sequence = Prompt.of(session.prompt.root, chunks.as_tokens(tokens[:stop]), session.prompt.media)
        total_seconds = len(tokens) * self._seconds_a_token
        going_on = forced or self._goes_on(session)
        keys = [block.key for block in sequence.blocks]
        self._memory.touch(keys)  # before room is made for the rest of it
        taken = sum(held.bytes for key in keys if (held := self._memory.get(key)) is not None)
        for block in sequence.blocks:
            if not (block.complete or ended) or block.key in self._memory:
                continue
            entry = Entry(
                block.key, "block", block.parent, block.start, block.stop,
                sequence.tokens[block.start : block.stop].tobytes(), chunks.inside(sequence.media, block.start, block.stop),
                0, (block.stop - block.start) * self._seconds_a_token, tip=not block.complete,
            )  # fmt: skip
            arrays = records.cut_block(cache, block.start, block.stop)
            taken += records.nbytes(arrays)
            held = self._new(session, entry, arrays, {}, total_seconds, going_on)
            if taken > self._memory.limit_bytes and not (held.admitted and self._spills):
                break  # a prompt larger than the tier: its beginning is what can be used
            self._keep(held)
            self._outgrow(entry)
        whole = stop == len(tokens)
        if ended and whole and self._layout.has_state and session.checkpoints < admission.MAX_CHECKPOINTS:
            keys.append(self._keep_state(session, sequence.tokens, cache, tip=True, wanted=forced))
            self._supersede(session)
        self._memory.touch(keys)
        session.written_tokens = len(tokens)
        self._faults = 0

    @_harmless(None)
    def close(self, request_id: str) -> None:
        """The request is over, whatever became of it."""
        if (session := self._sessions.pop(request_id, None)) is not None:
            self._unpin(session)

    # The tiers -------------------------------------------------------------------------------------------------------

    @property
    def has_state(self) -> bool:
        """Whether the model has layers that can only be kept as checkpoints."""
        return self._layout.has_state

    @_harmless(None)
    def tend(self, *, busy: bool) -> float | None:
        """Hand to the disk what is due. Seconds until it wants to be called again; None: not before something happens."""
        if self._io is None or self._io.off is not None:
            return None
        self._io.busy = busy
        if not busy:
            self._memory.forget(MEMORY_SECONDS)
        while self._due and len(self._saving) < SAVES_AT_ONCE:
            self._save(self._due.popleft())
        if not self._tips:
            return MEMORY_SECONDS / 2 if len(self._memory) else None
        now = time.monotonic()
        ripe = [key for key in self._tips if (held := self._memory.get(key)) is None or now - held.used >= TIP_SECONDS]
        for key in ripe:
            del self._tips[key]
            if (held := self._memory.get(key)) is not None and held.dirty and held.admitted:
                self._due.append(key)
        if ripe:
            return self.tend(busy=busy)
        oldest = min(held.used for key in self._tips if (held := self._memory.get(key)))
        return max(0.05, oldest + TIP_SECONDS - now)

    @_harmless(None)
    def saved(self, answer: Saved) -> None:
        """A file is written, or was refused."""
        self._saving.pop(answer.key, None)
        held = self._memory.get(answer.key)
        if answer.kept:
            self._refused.pop(answer.key, None)
            if held is not None:
                held.dirty = False
            return
        self._refused[answer.key] = None
        while len(self._refused) > 10_000:
            self._refused.pop(next(iter(self._refused)))

    def flush(self, seconds: float, answers: Callable[[], Answer | None]) -> bool:
        """Write all that is not on SSD yet, the newest first, within `seconds`. False when time ran out.

        `answers` gives what the disk's thread has posted so far, one by one, then None.
        """
        if self._io is None or self._io.off is not None:
            return True
        until = time.monotonic() + seconds
        self._io.busy = False
        waiting = deque(held.entry.key for held in self._memory.newest_first() if held.dirty)
        while (waiting or self._saving) and time.monotonic() < until:
            while waiting and len(self._saving) < SAVES_AT_ONCE:
                self._save(waiting.popleft(), forced=True)
            while (answer := answers()) is not None:
                if isinstance(answer, Saved):
                    self.saved(answer)
            if self._saving:
                time.sleep(0.002)
        return self._io.close(max(0.1, until - time.monotonic())) and not waiting

    @_harmless(None)
    def free_memory(self) -> None:
        """Drop what no request uses just now; what earned its place on SSD is written first, within bounds."""
        self._spill(self._memory.shrink(0))

    def clear(self) -> None:
        """Forget everything, in memory now and on SSD when `Cleared` comes."""
        self._epoch += 1  # what is being read, pinned or computed now belongs to before
        self._memory.clear()
        self._due.clear()
        self._tips.clear()
        if self._io is not None:
            self._io.order(Clear())

    def cleared(self) -> None:
        """All that was asked of the disk before `clear` is answered: what was not written for that reason can be."""
        self._refused.clear()

    @property
    def report(self) -> KvReport:
        """What the tiers hold and did since the start."""
        self._report.memory_bytes, self._report.memory_entries = self._memory.bytes, len(self._memory)
        if self.broken:
            self._report.off = self.broken
        elif self._io is not None:
            traffic, contents = self._io.traffic, self._io.traffic.contents
            self._report.disk_bytes, self._report.disk_entries = contents.bytes, contents.entries
            self._report.written_today = contents.written_today
            self._report.read_bytes, self._report.written_bytes = traffic.read_bytes, traffic.written_bytes
            self._report.refused, self._report.corrupt = traffic.refused, traffic.corrupt
            self._report.off = self._io.off or ""
        else:
            self._report.off = self._off
        return self._report

    # Inside ----------------------------------------------------------------------------------------------------------

    def _decide(self, session: Session, match: Match, matched: int = 0) -> None:
        """Settle on a match and say to the user what it is and why it is no more."""
        matched = max(match.matched, matched)
        session.match = Match(match.tokens, matched, match.pieces, match.checkpoint)
        tier: Literal["", "ram", "ssd"] = ""
        if match.tokens:
            tier = "ssd" if session.fetched.intersection(match.keys) else "ram"
        reason = self._reason(session, match.tokens, matched)
        session.note = CacheNote(tokens=match.tokens, tier=tier, reason=reason)

    def _reason(self, session: Session, tokens: int, matched: int) -> str:
        limit = chunks.whole(len(session.prompt.tokens) - 1, session.prompt.media)
        if tokens >= limit or (tokens and matched >= limit):
            return ""
        if session.corrupt:
            return "corrupt"
        missing = next((block for block in session.prompt.blocks if block.start <= matched < block.stop), None)
        if missing is not None and missing.complete and missing.key in self._refused:
            return "quota"
        if missing is not None and missing.complete and missing.key in session.seen:
            return "evicted"
        if matched == 0:
            return "layout" if self._io is not None and self._io.relaid else "cold"
        return f"diverged_at({matched}, {session.role_at(matched)})"

    def _filled(self, match: Match, capacity: int) -> Cache | None:
        blocks = [(self._memory.get(piece.key), piece.stop - piece.start) for piece in match.pieces]
        state = None if match.checkpoint is None else self._memory.get(match.checkpoint)
        cache = self._new_cache()
        try:
            parts = [(held.content, take) for held, take in blocks if held is not None]
            records.restore(
                cache,
                parts,
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

    def _plan_stops(self, session: Session) -> None:
        match = session.match
        if not (self._layout.has_state and session.store) or match is None:
            return
        places = {position: self._state_entry(session, session.prompt.tokens[:position]).key for position in
                  {session.system, session.document, session.boundary, match.matched} - {0}}  # fmt: skip
        session.stops = admission.stops(
            system=session.system,
            document=session.document,
            boundary=session.boundary,
            restored=match.tokens,
            matched=match.matched,
            known=[position for position, key in places.items() if key in self._memory],
        )

    def _sights(self, session: Session) -> list[bytes]:
        keys = [block.key for block in session.prompt.blocks if block.complete]
        if self._layout.has_state:
            places = [place for place in (session.system, session.document) if place]
            keys += [self._state_entry(session, session.prompt.tokens[:place]).key for place in places]
        return keys

    def _state_entry(self, session: Session, tokens: chunks.Tokens, *, tip: bool = False) -> Entry:
        """The checkpoint after `tokens`, which begin as the session's prompt does."""
        media = session.prompt.media
        cut = [block for block in chunks.blocks(session.prompt.root, tokens, media) if block.complete]
        start, parent = (cut[-1].stop, cut[-1].key) if cut else (0, session.prompt.root)
        rest = tokens[start:]
        return Entry(
            chunks.checkpoint_key(parent, rest, start, media), "checkpoint", parent, start, len(tokens), rest.tobytes(),
            chunks.inside(media, start, len(tokens)), 0, len(tokens) * self._seconds_a_token, tip,
        )  # fmt: skip

    def _keep_state(self, session: Session, tokens: chunks.Tokens, cache: Cache, *, tip: bool, wanted: bool) -> bytes:
        """Take a checkpoint, unless it is there. Returns its key."""
        entry = self._state_entry(session, tokens, tip=tip)
        session.checkpoints += 1
        if not session.store or entry.key in self._memory:
            return entry.key
        arrays, facts = records.cut_state(cache)
        self._keep(
            self._new(session, entry, arrays, facts, entry.saves_seconds, wanted or (tip and self._goes_on(session)))
        )
        self._report.checkpoints += 1
        return entry.key

    def _goes_on(self, session: Session) -> bool:
        restored = session.match.tokens if session.match else 0
        return admission.is_conversation(restored=restored, system=session.system, prompt=len(session.prompt.tokens))

    def _new(
        self, session: Session, entry: Entry, arrays: records.Arrays, facts: dict[str, str], total: float, wanted: bool
    ) -> Held:
        """An entry that this request made; `wanted` ones go to SSD whatever they cost."""
        worth = admission.is_worth(total_seconds=total, seconds=entry.saves_seconds, size=records.nbytes(arrays))
        return Held(entry, arrays, facts, dirty=True, admitted=wanted or worth or entry.key in session.seen)

    def _keep(self, held: Held) -> None:
        records.begin(held.content)
        self._take(held)
        if held.admitted:
            self._schedule(held)

    def _take(self, held: Held) -> None:
        self._spill(self._memory.add(held))

    @property
    def _spills(self) -> bool:
        """Whether what leaves memory can still be written."""
        return self._io is not None and self._io.off is None and sum(self._saving.values()) < MAX_SPILL_BYTES

    def _spill(self, dropped: Sequence[Held]) -> None:
        """What left memory before it was written is written now, if there is room to wait for the disk."""
        for gone in dropped:
            if gone.dirty and gone.admitted and gone.entry.key not in self._saving:
                if self._spills:
                    self._hand_over(gone)
                else:
                    self._report.spilled_away += 1

    def _admit(self, key: bytes) -> None:
        """It was wanted again."""
        held = self._memory.get(key)
        if held is not None and not held.admitted:
            held.admitted = True
            self._schedule(held)

    def _schedule(self, held: Held) -> None:
        if held.dirty and self._io is not None and self._io.off is None:
            if held.entry.tip:
                self._tips[held.entry.key] = None
            else:
                self._due.append(held.entry.key)

    def _save(self, key: bytes, *, forced: bool = False) -> None:
        held = self._memory.get(key)
        if held is not None and held.dirty and (held.admitted or forced) and key not in self._saving:
            self._hand_over(held)

    def _hand_over(self, held: Held) -> None:
        assert self._io is not None
        self._saving[held.entry.key] = held.bytes
        self._io.order(Save(held.entry, records.as_tensors(held.content), held.facts))

    def _outgrow(self, entry: Entry) -> None:
        """Drop shorter blocks that the new one begins with."""
        for other in self._memory.children([entry.parent], "block"):
            if begins(entry, other) and not self._is_pinned(other.key):
                self._memory.drop(other.key)
                self._tips.pop(other.key, None)

    def _supersede(self, session: Session) -> None:
        """The conversation went on: the ends of its earlier turns are not needed again, and need not go to SSD."""
        restored = session.match.tokens if session.match else 0
        for entry in self._memory.children(session.prompt.parents, "checkpoint"):
            held = self._memory.get(entry.key)
            earlier = entry.tip and entry.stop <= restored and entry.stop != session.boundary
            theirs = session.prompt.tokens[entry.start : entry.stop].tobytes()
            if held is not None and earlier and held.dirty and not held.pins and entry.tokens == theirs:
                self._memory.drop(entry.key)
                self._tips.pop(entry.key, None)

    def _plan(self, session: Session) -> Match:
        return plan(session.prompt, self._memory, has_state=self._layout.has_state)

    def _is_pinned(self, key: bytes) -> bool:
        held = self._memory.get(key)
        return held is not None and held.pins > 0

    def _pin(self, session: Session, keys: Sequence[bytes]) -> None:
        for key in keys:
            if (held := self._memory.get(key)) is not None:
                held.pins += 1
                session.pinned.append(key)

    def _unpin(self, session: Session) -> None:
        self._unpin_all(session)
        self._spill(self._memory.shrink(self._memory.limit_bytes))

    def _unpin_all(self, session: Session) -> None:
        for key in session.pinned:
            if (held := self._memory.get(key)) is not None and held.pins:
                held.pins -= 1
        session.pinned.clear()
        if self._io is not None:
            self._io.release(session.ahead_bytes)
        session.ahead_bytes = 0

    def _measure(self, session: Session, tokens: int) -> None:
        """Seconds that a token of prefill takes, smoothed."""
        restored = session.match.tokens if session.match else 0
        if tokens - restored < MIN_MEASURED:
            return
        now = (time.monotonic() - session.began) / (tokens - restored)
        self._seconds_a_token = now if not self._seconds_a_token else 0.7 * self._seconds_a_token + 0.3 * now
