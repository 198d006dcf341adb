"""How much of a prompt can be restored: a pure decision over what RAM and SSD know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine.kvstore.index import Entry, Kind, Media
from engine.worker.kvcache import chunks
from engine.worker.kvcache.chunks import Block, Tokens


class View(Protocol):
    """What a tier knows."""

    def known(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those of `keys` that have an entry."""

    def children(self, parents: Sequence[bytes], kind: Kind) -> list[Entry]:
        """Entries of a kind that come right after any of `parents`."""


@dataclass(frozen=True)
class Prompt:
    """The prompt that is looked up: its tokens, its media, and the blocks that they fall into after `root`."""

    root: bytes
    tokens: Tokens
    media: tuple[Media, ...]
    blocks: tuple[Block, ...]

    @classmethod
    def of(cls, root: bytes, tokens: Tokens, media: tuple[Media, ...]) -> Prompt:
        return cls(root, tokens, media, tuple(chunks.blocks(root, tokens, media)))

    @property
    def parents(self) -> list[bytes]:
        """Keys after which entries may lie that the prompt shares."""
        return [self.root, *(block.key for block in self.blocks if block.complete)]


@dataclass(frozen=True)
class Piece:
    """The tokens start..end of the block `key`, which begins at `start`."""

    key: bytes
    start: int
    end: int


@dataclass(frozen=True)
class Match:
    """`tokens` can be restored from `pieces`, and in a model with state layers from `checkpoint`. `matched` tokens are known:
    more than `tokens` when the state at that point is missing."""

    tokens: int
    matched: int
    pieces: tuple[Piece, ...]
    checkpoint: bytes | None = None

    @property
    def keys(self) -> list[bytes]:
        """The keys of all entries that are needed, in order."""
        found = [piece.key for piece in self.pieces]
        return found if self.checkpoint is None else [*found, self.checkpoint]


NOTHING = Match(0, 0, ())


def plan(prompt: Prompt, view: View, *, has_state: bool) -> Match:
    """The longest beginning that can be restored. The last token is always computed, because its logits begin the answer."""
    limit = chunks.whole(len(prompt.tokens) - 1, prompt.media)
    pieces = _covered(prompt, view, limit)
    matched = pieces[-1].end if pieces else 0
    if not has_state:
        return Match(matched, matched, tuple(pieces))
    checkpoint = _checkpoint(prompt, view, pieces, matched)
    if checkpoint is None:
        return Match(0, matched, ())
    return Match(checkpoint.end, matched, clipped(pieces, checkpoint.end), checkpoint.key)


def clipped(pieces: Sequence[Piece], end: int) -> tuple[Piece, ...]:
    """The pieces up to token `end`."""
    return tuple(Piece(piece.key, piece.start, min(piece.end, end)) for piece in pieces if piece.start < end)


def _covered(prompt: Prompt, view: View, limit: int) -> list[Piece]:
    known = view.known([block.key for block in prompt.blocks if block.complete])
    pieces: list[Piece] = []
    parent, position = prompt.root, 0
    for block in prompt.blocks:
        if block.key not in known:
            break
        pieces.append(Piece(block.key, block.start, block.end))
        parent, position = block.key, block.end
    if position < limit:
        best = max(
            (
                (_common(prompt, child), child.key)
                for child in view.children([parent], "block")
                if child.start == position
            ),
            default=(0, b""),
        )
        if best[0]:
            pieces.append(Piece(best[1], position, position + best[0]))
    return list(clipped(pieces, limit))


def _common(prompt: Prompt, child: Entry) -> int:
    theirs = np.frombuffer(child.tokens, dtype="<u4")
    mine = prompt.tokens[child.start : child.start + len(theirs)]
    here = chunks.inside(prompt.media, child.start, child.start + len(theirs))
    return chunks.common(mine, here, theirs, child.media, child.start)


def _checkpoint(prompt: Prompt, view: View, pieces: Sequence[Piece], matched: int) -> Entry | None:
    parents = [prompt.root, *(piece.key for piece in pieces)]
    fitting = [
        entry
        for entry in view.children(parents, "checkpoint")
        if entry.end <= matched and _common(prompt, entry) == entry.end - entry.start
    ]
    return max(fitting, key=lambda entry: entry.end, default=None)
