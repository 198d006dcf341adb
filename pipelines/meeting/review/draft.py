"""A segment's text while it is corrected: what was replaced, and where."""

from __future__ import annotations

from dataclasses import dataclass, field

Span = tuple[int, int]


@dataclass
class _Change:
    """text[start:end] now stands for heard[heard_start:heard_end]."""

    start: int
    end: int
    heard_start: int
    heard_end: int


@dataclass
class Draft:
    """Starts as what was heard. Every replacement knows its place in the text as it is now and in what was heard."""

    text: str
    _changes: list[_Change] = field(default_factory=list)

    @property
    def changed(self) -> tuple[Span, ...]:
        """The places of `text` that differ from what was heard, in order. A deletion has no length."""
        return tuple((change.start, change.end) for change in self._changes)

    def replace(self, start: int, end: int, target: str) -> Span:
        """Put `target` in the place of text[start:end]; earlier changes there go. Returns the place in what was heard."""
        met = [change for change in self._changes if change.start < end and start < change.end]
        first = min([start, *(change.start for change in met)])
        last = max([end, *(change.end for change in met)])
        heard = self._heard(first, at_end=False), self._heard(last, at_end=True)
        # A change that is overlapped in part keeps the rest of its text, and counts as one with the new one.
        target = self.text[first:start] + target + self.text[end:last]
        self.text = self.text[:first] + target + self.text[last:]
        grown = len(target) - (last - first)
        kept = [change for change in self._changes if change not in met]
        for change in kept:
            if change.start >= last:
                change.start, change.end = change.start + grown, change.end + grown
        kept.append(_Change(first, first + len(target), *heard))
        self._changes = sorted(kept, key=lambda change: (change.start, change.end))
        return heard

    def _heard(self, at: int, *, at_end: bool) -> int:
        """The place in what was heard of a place in `text` that is not inside a change."""
        moved = 0
        for change in self._changes:
            if change.end < at or (change.end == at and (at_end or change.start < at)):
                moved = change.heard_end - change.end
        return at + moved
