"""Mistakes of recognisers: places in real transcripts, and random replacements of characters that sound alike."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from rapidfuzz.distance import Levenshtein

from pipelines.meeting.review.edits import Words, objection
from pipelines.meeting.review.edits import places as standing
from speech.normalise import UNIT, is_han
from training import lexicon, voices
from training.sentences import PUNCTUATION

MAX_HAN, MAX_WORDS = 6, 3
_BROKEN = re.compile(f"[{re.escape(PUNCTUATION)}、]")


@dataclass(frozen=True)
class Place:
    """The transcript has `heard` where `said` was meant. They are equal if the place was heard correctly."""

    said: str
    heard: str


def places(said: str, heard: str, rng: random.Random, *, wrong: bool) -> list[Place]:
    """Places that could be terms. With `wrong` they were misheard and may include a few correct neighbours; otherwise
    they were heard correctly.

    Wrong places are limited to those that the pipeline's guard would let a reviewer change.
    """
    ours, theirs = list(UNIT.finditer(said)), list(UNIT.finditer(heard))
    blocks = Levenshtein.opcodes([m.group().lower() for m in ours], [m.group().lower() for m in theirs])
    matched: list[tuple[int, int] | None] = [None] * len(ours)
    for block in blocks:
        if block.tag == "equal":
            for k in range(block.src_end - block.src_start):
                matched[block.src_start + k] = (block.dest_start + k, block.dest_start + k + 1)
    found = []
    for block in blocks:
        if (block.tag == "equal") == wrong:
            continue
        if wrong:
            first, last = block.src_start, block.src_end
            start, stop = block.dest_start, block.dest_end
        else:
            first = rng.randrange(block.src_start, block.src_end)
            last = first + 1
            start, stop = matched[first] or (0, 0)
        for _ in range(rng.choice((0, 1, 1, 2, 2, 3))):  # include neighbours that were heard correctly
            if rng.random() < 0.5 and first > 0 and (before := matched[first - 1]) == (start - 1, start):
                first, start = first - 1, before[0]
            elif last < len(ours) and (after := matched[last]) == (stop, stop + 1):
                last, stop = last + 1, after[1]
        if first == last or start == stop:
            continue
        place = Place(
            said[ours[first].start() : ours[last - 1].end()], heard[theirs[start].start() : theirs[stop - 1].end()]
        )
        if _is_term(place.said) and not _BROKEN.search(place.heard) and _allowed(heard, place, wrong=wrong):
            found.append(place)
    return found


def _is_term(text: str) -> bool:
    units = UNIT.findall(text)
    han = sum(map(is_han, units))
    if _BROKEN.search(text):
        return False
    if han == len(units):
        return 2 <= han <= MAX_HAN
    return len(units) <= MAX_WORDS + han and sum(c.isascii() and c.isalpha() for c in text) >= 3


def _allowed(heard: str, place: Place, *, wrong: bool) -> bool:
    if not wrong:
        return True
    words = Words(frozenset({place.said}))
    return any(objection(heard, found, place.said, words) is None for found in standing(heard, place.heard)[:1])


def garbled(text: str, rng: random.Random, share: float) -> str:
    """`text` in which others that sound (almost) the same replace this share of its Han characters."""
    return "".join(_alike(c, rng) if "\u4e00" <= c <= "\u9fff" and rng.random() < share else c for c in text)


def respelt(word: str, rng: random.Random) -> str:
    """A Latin word spelt by its sound, as a recogniser spells an unknown word."""
    if len(word) > 6 and rng.random() < 0.4:
        cut = rng.randint(3, len(word) - 3)
        return f"{word[:cut]} {word[cut:]}"
    for _ in range(rng.randint(1, 3)):
        written, spoken = rng.choice(_SPELLINGS)
        if written in word:
            word = word.replace(written, spoken, 1)
    return word


_SPELLINGS: Final = tuple(
    tuple(pair.split(">"))
    for pair in (
        "c>k k>c ck>k ph>f f>ph x>cks s>c z>s ee>ea ea>e oo>u u>oo ai>ay a>e e>a e>i i>e o>a a>u u>a y>i i>y er>or or>er tion>shun "
        "qu>kw w>wh j>g g>j ll>l l>ll tt>t t>tt n>m m>n b>p p>b d>t t>d v>f sh>ch gh>g ou>ow ow>o ia>ya io>eo sc>s h> e>"
    ).split()
)  # fmt: skip

_CONFUSED: Final = (
    ("zh", "z"),
    ("ch", "c"),
    ("sh", "s"),
    ("ang", "an"),
    ("eng", "en"),
    ("ing", "in"),
    ("l", "n"),
    ("h", "f"),
)


@cache
def _by_sound() -> tuple[dict[str, lexicon.Weighted], dict[str, lexicon.Weighted], dict[str, lexicon.Weighted]]:
    """Characters by syllable with tone, by syllable without tone, and by syllable with confusable sounds merged."""
    tables: tuple[dict[str, list[str]], ...] = (defaultdict(list), defaultdict(list), defaultdict(list))
    for character in lexicon.characters():
        for table, key in zip(tables, _keys(character), strict=True):
            table[key].append(character)
    shares = _character_shares()
    exact, toneless, near = (
        {key: lexicon.Weighted(found, [shares[c] for c in found], 0.6) for key, found in table.items()}
        for table in tables
    )
    return exact, toneless, near


@cache
def _character_shares() -> dict[str, float]:
    shares: dict[str, float] = defaultdict(lambda: 1e-9)
    for word, share in lexicon.chinese_frequencies().items():
        for character in word:
            shares[character] += share
    return shares


@cache
def _keys(character: str) -> Sequence[str]:
    syllable = voices.pinyin(character)
    toneless = syllable.rstrip("12345")
    merged = toneless
    for written, heard in _CONFUSED:
        merged = merged.replace(written, heard)
    return syllable, toneless, merged


def _alike(character: str, rng: random.Random) -> str:
    if character not in _known():
        return character
    table = rng.choices((0, 1, 2), (6, 3, 2))[0]
    return _by_sound()[table][_keys(character)[table]].draw(rng.random())


@cache
def _known() -> frozenset[str]:
    return frozenset(lexicon.characters())
