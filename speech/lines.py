"""Where text may be cut into lines, in any script: after the line breaking classes of Unicode (UAX #14) and the rules of
Chinese and Japanese printers (kinsoku).

Words, numbers, addresses and grapheme clusters (emoji with joiners, flags, letters with marks) stay whole. No line begins with a
closing mark or ends with an opening one. Only what is wider than a line is cut inside.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final

import regex

MAX_LINE_WIDTH: Final = 42.0
_HAN_WIDTH: Final = MAX_LINE_WIDTH / 16

_CLUSTER: Final = regex.compile(r"\X")
_WHOLE: Final = regex.compile(
    r"(?i:[a-z][a-z0-9+.-]*://|www\.)[!-~]+"  # an address
    r"|[!-~]+@[!-~]+"
    r"|\p{Nd}+(?:[-.,:/'’٫٬．，：／–]\p{Nd}+)+"  # a number, a date, a time
)
_BRACKETED: Final = regex.compile(
    r"[(（\[［〔【〖「『《〈][^()（）\[\]［］〔〕【】〖〗「」『』《》〈〉]{1,10}[)）\]］〕】〗」』》〉]"
)
"""Short enough to be kept on one line where another place to cut is near."""
_NO_START: Final = regex.compile(
    r"[\p{Line_Break=CL}\p{Line_Break=CP}\p{Line_Break=EX}\p{Line_Break=NS}\p{Line_Break=CJ}\p{Pf}]"
    r"|[\p{Line_Break=IS}\p{Line_Break=SY}\p{Line_Break=IN}\p{Line_Break=PO}\p{Line_Break=BA}\p{Line_Break=HY}]"
    r"|[·•～~／\u0e2f\u0e30\u0e32\u0e33\u0e45\u0e46\u0eb0\u0eb2\u0ec6]"
)
_BEGINS_WORD: Final = regex.compile(
    r"[\p{Line_Break=IS}\p{Line_Break=SY}\p{Line_Break=IN}\p{Line_Break=PO}\p{Line_Break=HY}]"
)
"""Marks that words may begin with, after a space: .NET, /etc, -5, …and."""
_NO_END: Final = regex.compile(r"[\p{Line_Break=OP}\p{Line_Break=PR}\p{Pi}#＃@＠\u0e40-\u0e44\u0ec0-\u0ec4]")
_AMBIGUOUS: Final = regex.compile(r"[\"'＂＇]")
"""Opens or closes: it stays with what is on both sides."""
_MARK: Final = regex.compile(r"\p{P}")
_PICTURE: Final = regex.compile(r"[\p{Extended_Pictographic}\p{Regional_Indicator}]")
_HANGUL: Final = regex.compile(r"[\p{Script=Hangul}]")
_PAUSE: Final = frozenset("，。！？；、,.!?;:…：،؟۔।")
_ZERO_WIDTH_SPACE: Final = "\u200b"


class Place(IntEnum):
    """How good it is to cut somewhere."""

    INSIDE_MARKS = 0
    """A line would begin with a closing mark or end with an opening one."""
    INSIDE_WORD = 1
    INSIDE_BRACKETS = 2
    BETWEEN_WORDS = 3
    AFTER_PAUSE = 4


@dataclass(frozen=True)
class _Text:
    """`places[i]`: how good it is to cut before `clusters[i]`."""

    clusters: Sequence[str]
    widths: Sequence[float]
    places: Sequence[Place]

    def part(self, start: int, end: int) -> str:
        return "".join(self.clusters[start:end]).strip()


def pieces(text: str, width: float) -> list[str]:
    """`text` in pieces no wider than `width`, none of them empty; one cluster may be wider."""
    laid = _laid(text)
    found, start = [], 0
    while start < len(laid.clusters):
        end = _end(laid, start, width)
        if part := laid.part(start, end):
            found.append(part)
        start = end
    return found


def halves(text: str) -> list[str]:
    """`text` in two pieces, cut where it is best near the middle; as it is if it is one cluster."""
    laid = _laid(text)
    cuts = range(1, len(laid.clusters))
    if not cuts:
        return [text]
    upto = list(itertools.accumulate(laid.widths))
    near = [at for at in cuts if 0.3 <= upto[at - 1] / upto[-1] <= 0.7 and laid.places[at] >= Place.AFTER_PAUSE]
    best = Place.AFTER_PAUSE if near else min(Place.BETWEEN_WORDS, max(laid.places[at] for at in cuts))
    at = min((at for at in near or cuts if laid.places[at] >= best), key=lambda at: abs(upto[at - 1] / upto[-1] - 0.5))
    return [part for part in (laid.part(0, at), laid.part(at, len(laid.clusters))) if part]


def wrapped(text: str) -> list[str]:
    """`text` as lines: one, or two of about the same length, or as many as it needs."""
    if width(text) <= MAX_LINE_WIDTH:
        return pieces(text, MAX_LINE_WIDTH)
    two = halves(text)
    return two if len(two) == 2 and all(width(row) <= MAX_LINE_WIDTH for row in two) else pieces(text, MAX_LINE_WIDTH)


def is_breakable(text: str) -> bool:
    """Whether it can be cut without cutting a word."""
    return any(place > Place.INSIDE_WORD for place in _laid(text).places[1:])


def has_words(text: str) -> bool:
    """Whether there is anything but punctuation and spaces."""
    return any(not char.isspace() and not _MARK.match(char) for char in text)


def width(text: str) -> float:
    return sum(_width(cluster) for cluster in _CLUSTER.findall(text))


def _end(laid: _Text, start: int, limit: float) -> int:
    """Where the piece that begins at `start` ends."""
    fits, used, total = start, 0.0, len(laid.clusters)
    while fits < total and (used + laid.widths[fits] <= limit or laid.clusters[fits].isspace()):
        used += laid.widths[fits]
        fits += 1
    if fits == total:
        return total
    fits = max(fits, start + 1)
    # A short line is worse than a cut at a less good place, so the better places are looked for in the second half only.
    late, early = range(fits, start + (fits - start) // 2, -1), range(fits, start, -1)
    for worst, where in (
        (Place.AFTER_PAUSE, late),
        (Place.BETWEEN_WORDS, late),
        (Place.INSIDE_BRACKETS, early),
        (Place.INSIDE_WORD, early),
    ):
        for at in where:
            if laid.places[at] >= worst:
                return at
    return fits


@lru_cache(maxsize=64)
def _laid(text: str) -> _Text:
    clusters = _CLUSTER.findall(text)
    starts = list(itertools.accumulate((len(cluster) for cluster in clusters), initial=0))
    whole = _inner(_WHOLE, text)
    bracketed = _inner(_BRACKETED, text)
    places = [Place.INSIDE_MARKS]
    for i in range(1, len(clusters)):
        place = _place(clusters, i)
        if starts[i] in whole:
            place = min(place, Place.INSIDE_WORD)
        elif starts[i] in bracketed:
            place = min(place, Place.INSIDE_BRACKETS)
        places.append(place)
    return _Text(clusters, [_width(cluster) for cluster in clusters], places)


def _inner(pattern: regex.Pattern[str], text: str) -> set[int]:
    """Positions inside what matches."""
    return {at for match in pattern.finditer(text) for at in range(match.start() + 1, match.end())}


def _place(clusters: Sequence[str], at: int) -> Place:
    """How good it is to cut before the cluster `at`, by what stands around it."""
    following = clusters[at]
    before = at - 1
    while before > 0 and clusters[before].isspace():
        before -= 1
    previous, spaced = clusters[before], clusters[at - 1].isspace()
    if following.isspace() or _NO_END.match(previous):
        return Place.INSIDE_MARKS
    if spaced:
        if _NO_START.match(following) and not _begins_word(clusters, at):
            return Place.INSIDE_MARKS
        return Place.AFTER_PAUSE if previous[0] in _PAUSE else Place.BETWEEN_WORDS
    if _NO_START.match(following):
        return Place.INSIDE_MARKS
    together = previous[0] == following[0] and previous[0] == "—"
    if together or not (_stands_alone(previous) or _stands_alone(following)):
        return Place.INSIDE_WORD
    if _AMBIGUOUS.match(previous) or _AMBIGUOUS.match(following):
        return Place.INSIDE_WORD
    if previous[0].isdecimal() and following[0].isdecimal():
        return Place.INSIDE_WORD
    return Place.AFTER_PAUSE if previous[0] in _PAUSE else Place.BETWEEN_WORDS


def _begins_word(clusters: Sequence[str], at: int) -> bool:
    """Whether the mark at `at`, which follows a space, begins a word."""
    while at < len(clusters) and _BEGINS_WORD.match(clusters[at]):
        at += 1
    return at < len(clusters) and not (
        clusters[at].isspace() or _NO_START.match(clusters[at]) or _stands_alone(clusters[at])
    )


@lru_cache(maxsize=4096)
def _stands_alone(cluster: str) -> bool:
    """Whether lines may be cut beside it without a space: Han, kana, their marks, pictures; not Hangul, which has spaces."""
    if cluster == _ZERO_WIDTH_SPACE:
        return True
    if _HANGUL.match(cluster):
        return False
    return unicodedata.east_asian_width(cluster[0]) in "WF" or bool(_PICTURE.match(cluster))


@lru_cache(maxsize=4096)
def _width(cluster: str) -> float:
    """In columns, 42 to a line. No cluster is wider than a line."""
    columns = sum(_HAN_WIDTH if unicodedata.east_asian_width(char) in "WF" else 1.0 for char in cluster)
    return min(columns, MAX_LINE_WIDTH)
