"""Which requests wait for the disk's thread, and on whose account. Pure bookkeeping, on the model's thread.

A request that asks SSD *leads*. Another one that lacks a block which a leader asked for *follows* it, so the block is read
once. A row whose KV was not read ahead reads it as it begins; such rows *take turns*, so that memory holds one of them at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class _Asked:
    """What a leader asked for, and its followers with the block that each lacks."""

    keys: frozenset[bytes]
    followers: dict[str, bytes] = field(default_factory=dict)


class Lookups:
    """Every request that waits here is named in exactly one answer: of its own, its leader's, or the row's before it."""

    def __init__(self) -> None:
        self._asked: dict[str, _Asked] = {}
        self._turn = ""
        self._behind: list[str] = []

    def lead(self, request_id: str, keys: frozenset[bytes]) -> None:
        """The request has asked SSD for the blocks `keys`."""
        self._asked[request_id] = _Asked(keys)

    def follow(self, request_id: str, lacking: bytes) -> bool:
        """Let the request wait for a leader that asked for the block it lacks. False when there is none."""
        leader = next((asked for asked in self._asked.values() if lacking in asked.keys), None)
        if leader is None:
            return False
        leader.followers[request_id] = lacking
        return True

    @property
    def turn_is_free(self) -> bool:
        """Whether no row is reading as it begins."""
        return not self._turn

    def take_turn(self, request_id: str) -> None:
        """The row reads its KV now. The others wait for its answer."""
        self._turn = request_id

    def wait_for_turn(self, request_id: str) -> None:
        """The row tries again when the one that reads has its answer."""
        self._behind.append(request_id)

    def waiting_for(self, request_id: str) -> tuple[list[str], list[str]]:
        """Those that wait for the answer to the request: it and its followers, and the rows that wait for their turn."""
        asked = self._asked.get(request_id)
        followers = [] if asked is None else [*asked.followers]
        return [request_id, *followers], [*self._behind] if request_id == self._turn else []

    def answered(self, request_id: str) -> tuple[dict[str, bytes], list[str]]:
        """The answer is here. Returns the followers, each with the block it lacked, and the rows that waited for their turn.
        None of them waits here any longer."""
        asked = self._asked.pop(request_id, None)
        behind: list[str] = []
        if request_id == self._turn:
            self._turn, behind, self._behind = "", self._behind, []
        return {} if asked is None else asked.followers, behind
