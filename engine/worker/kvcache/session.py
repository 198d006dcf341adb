"""One request as the cache sees it: its prompt, what was found of it, and what the user is told about that."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from engine.kvstore.index import Entry, Media
from engine.types import CacheNote
from engine.worker.kvcache import admission, chunks
from engine.worker.kvcache.planner import NOTHING, Match, Prompt


@dataclass(frozen=True)
class CacheRequest:
    """What the cache is told about a request besides its tokens.

    `system`, `document` and `boundary` are token positions at which other prompts may continue differently (0: none): after
    the system block, after a document, and before the answer. `role_at` names the message that a token belongs to. Without
    `store` the request reads what is kept and keeps nothing.
    """

    id: str
    media: tuple[Media, ...]
    tenant: str
    store: bool
    system: int
    document: int
    boundary: int
    role_at: Callable[[int], str]


@dataclass
class Session:
    """An open request. On the model's thread.

    `epoch` counts the clearings before it. `fetched` are the entries that came from SSD for it, `seen` those that an earlier
    prompt had asked for. `late`: its KV on SSD is read only when its row begins. `ahead_bytes` were read for it and are not in
    use yet. `began` is when its prefill began, 0.0 before.
    """

    request: CacheRequest
    prompt: Prompt
    epoch: int
    match: Match = NOTHING
    note: CacheNote = field(default_factory=CacheNote)
    checkpoints: tuple[admission.Checkpoint, ...] = ()
    fetched: set[bytes] = field(default_factory=set)
    seen: frozenset[bytes] = frozenset()
    corrupt: bool = False
    late: bool = False
    ahead_bytes: int = 0
    pinned: list[bytes] = field(default_factory=list)
    began: float = 0.0
    checkpoints_taken: int = 0
    kept_tokens: int = 0

    @classmethod
    def of(cls, request: CacheRequest, root: bytes, tokens: Sequence[int], epoch: int) -> Session:
        """A session for the prompt `tokens` after `root`. A position inside a medium is no place to cut and counts as none."""
        media = request.media
        system, document, boundary = (
            place if chunks.whole(place, media) == place else 0
            for place in (request.system, request.document, request.boundary)
        )
        request = replace(request, system=system, document=document, boundary=boundary)
        return cls(request, Prompt.of(root, chunks.as_tokens(tokens), media), epoch)

    @property
    def block_keys(self) -> list[bytes]:
        """Keys of the complete blocks of its prompt, in order."""
        return [block.key for block in self.prompt.blocks if block.complete]

    @property
    def restorable(self) -> int:
        """Tokens of its prompt that could be restored at best."""
        return chunks.whole(len(self.prompt.tokens) - 1, self.prompt.media)

    @property
    def is_conversation(self) -> bool:
        """Whether it continues what was kept before."""
        return admission.is_conversation(
            restored=self.match.tokens, system=self.request.system, prompt=len(self.prompt.tokens)
        )

    # What the user is told ------------------------------------------------------------------------------------------

    def settle(self, match: Match, matched: int = 0, *, refused: Container[bytes], relaid: bool) -> None:
        """Settle on a match and note for the user what it is, and why it is no more.

        `matched` tokens were known to match before, which may be more than the match itself says. Entries in `refused` could
        not be written to SSD. `relaid`: the directory had another layout and was emptied.
        """
        self.match = replace(match, matched=max(match.matched, matched))
        tier: Literal["", "ram", "ssd"] = ""
        if match.tokens:
            tier = "ssd" if self.fetched.intersection(match.keys) else "ram"
        self.note = CacheNote(tokens=match.tokens, tier=tier, reason=self._reason(refused, relaid))

    def _reason(self, refused: Container[bytes], relaid: bool) -> str:
        tokens, matched, limit = self.match.tokens, self.match.matched, self.restorable
        if tokens >= limit or (tokens and matched >= limit):
            return ""
        if self.corrupt:
            return "corrupt"
        missing = next((block for block in self.prompt.blocks if block.start <= matched < block.end), None)
        if missing is not None and missing.complete and missing.key in refused:
            return "quota"
        if missing is not None and missing.complete and missing.key in self.seen:
            return "evicted"
        if matched == 0:
            return "layout" if relaid else "cold"
        return f"diverged_at({matched}, {self.request.role_at(matched)})"

    # Checkpoints ----------------------------------------------------------------------------------------------------

    def checkpoint_entry(self, tokens: chunks.Tokens, *, saves_seconds: float = 0.0, tip: bool = False) -> Entry:
        """The entry for the state layers after `tokens`, which begin like the prompt."""
        media = self.prompt.media
        cut = [block for block in chunks.blocks(self.prompt.root, tokens, media) if block.complete]
        start, parent = (cut[-1].end, cut[-1].key) if cut else (0, self.prompt.root)
        rest = tokens[start:]
        return Entry(
            chunks.checkpoint_key(parent, rest, start, media), "checkpoint", parent, start, len(tokens), rest.tobytes(),
            chunks.inside(media, start, len(tokens)), 0, saves_seconds, tip,
        )  # fmt: skip

    def sights(self, *, has_state: bool) -> tuple[bytes, ...]:
        """The keys to note as seen: an entry that is wanted for the second time goes to SSD."""
        places = [self.request.system, self.request.document] if has_state else []
        return (*self.block_keys, *(self._checkpoint_key(place) for place in places if place))

    def plan_checkpoints(self, kept: Container[bytes]) -> None:
        """Choose where to take checkpoints. Those with keys in `kept` are there already."""
        request = self.request
        places = {request.system, request.document, request.boundary, self.match.matched} - {0}
        self.checkpoints = admission.checkpoints(
            system=request.system,
            document=request.document,
            boundary=request.boundary,
            restored=self.match.tokens,
            matched=self.match.matched,
            known=[place for place in places if self._checkpoint_key(place) in kept],
        )

    def superseded(self, checkpoints: Collection[Entry]) -> list[bytes]:
        """Keys of those `checkpoints` that are ends of earlier turns of this conversation, which has continued."""
        tokens = self.prompt.tokens
        return [
            entry.key
            for entry in checkpoints
            if entry.tip
            and entry.end <= self.match.tokens
            and entry.end != self.request.boundary
            and entry.tokens == tokens[entry.start : entry.end].tobytes()
        ]

    def _checkpoint_key(self, place: int) -> bytes:
        return self.checkpoint_entry(self.prompt.tokens[:place]).key
