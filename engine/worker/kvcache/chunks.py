"""Where a sequence is cut, and the names of the pieces: a hash chain over everything that decides their content.

A block is a run of tokens with its KV. Its key is sha256(parent's key, tokens, media in it). The first parent is the root:
sha256(weights, quantisation, layout, tenant). So equal keys mean equal content, whatever prompt they came from. This is the
hash chain of vLLM's prefix caching (https://docs.vllm.ai/en/latest/design/prefix_caching.html); digests stand for pixels.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from engine.kvstore.index import Media

BLOCK_TOKENS: Final = 256

Tokens = np.ndarray[tuple[int], np.dtype[Any]]
"""Little-endian uint32."""


@dataclass(frozen=True)
class Block:
    """Tokens start..end after `parent`. `complete`: every longer sequence is cut at its end too."""

    key: bytes
    parent: bytes
    start: int
    end: int
    complete: bool


def root(*, fingerprint: str, quantisation: str, layout: int, tenant: str) -> bytes:
    """The parent of first blocks: everything besides tokens that decides the KV, and the tenant it belongs to."""
    named = "\0".join((fingerprint, quantisation, str(layout), tenant))
    return hashlib.sha256(named.encode()).digest()


def as_tokens(ids: Sequence[int]) -> Tokens:
    """Token ids as an array [tokens]."""
    return np.asarray(ids, dtype="<u4")


def blocks(first_parent: bytes, tokens: Tokens, media: Sequence[Media]) -> list[Block]:
    """The whole sequence as blocks. The last one may be incomplete. A cut never falls into a medium: the block grows to the
    medium's end. A cut depends only on what stands before it, so sequences with a common beginning share blocks."""
    found: list[Block] = []
    parent, start = first_parent, 0
    while start < len(tokens):
        end = _cut(start + BLOCK_TOKENS, media)
        complete = end <= len(tokens)
        end = min(end, len(tokens))
        key = block_key(parent, tokens[start:end], start, media)
        found.append(Block(key, parent, start, end, complete))
        parent, start = key, end
    return found


def block_key(parent: bytes, tokens: Tokens, start: int, media: Sequence[Media]) -> bytes:
    """The key of the block `tokens`, which begins at `start` after `parent`."""
    digest = hashlib.sha256(parent)
    digest.update(struct.pack("<I", len(tokens)))
    digest.update(tokens.tobytes())
    for medium in inside(media, start, start + len(tokens)):
        digest.update(struct.pack("<II", medium.start - start, medium.end - start) + medium.digest)
    return digest.digest()


def checkpoint_key(parent: bytes, tokens: Tokens, start: int, media: Sequence[Media]) -> bytes:
    """The key of the state layers after `tokens`, which begin at `start` after `parent`."""
    return hashlib.sha256(b"state" + block_key(parent, tokens, start, media)).digest()


def inside(media: Sequence[Media], start: int, end: int) -> tuple[Media, ...]:
    """The media that begin in start..end."""
    return tuple(medium for medium in media if start <= medium.start < end)


def whole(position: int, media: Sequence[Media]) -> int:
    """`position`, or the start of the medium that it falls into."""
    return next((medium.start for medium in media if medium.start < position < medium.end), position)


def common(
    first: Tokens, first_media: Sequence[Media], second: Tokens, second_media: Sequence[Media], start: int
) -> int:
    """How many tokens two runs at `start` share from their beginnings. A medium counts as a whole or not at all."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    if len(different):
        length = int(different[0])
    for mine, yours in zip(first_media, second_media, strict=False):
        if mine != yours:
            length = min(length, mine.start - start, yours.start - start)
            break
    else:
        extra = [*first_media[len(second_media) :], *second_media[len(first_media) :]]
        length = min([length, *(medium.start - start for medium in extra)])
    for medium in first_media:
        if medium.start - start < length < medium.end - start:
            length = medium.start - start
    return length


def _cut(position: int, media: Sequence[Media]) -> int:
    return next((medium.end for medium in media if medium.start < position < medium.end), position)
