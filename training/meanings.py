"""Pairs of texts with the same meaning, for the text embedding. No pair comes from a fixed list of sentences.

There are three kinds: words with their definitions and translations; free sentences in which synonyms and translations
replace a third to all of the words, some words are dropped and clauses are moved; and sentences of `intents` with
dictionary words in their slots.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import cache
from typing import Final

from training import dictionary, held_out, intents, lexicon
from training.sentences import Language, Writer

Pair = tuple[str, str]
EMPTY_CHINESE: Final = frozenset(
    "的了吗呢吧啊嘛呀着过就也都很是在把被给地得和跟与而且还又才再个这那么之所以因为但是如果一"
)
EMPTY_ENGLISH: Final = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "to",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "in",
        "on",
        "at",
        "for",
        "and",
        "or",
        "that",
        "this",
        "it",
        "its",
        "by",
        "with",
        "as",
        "from",
        "do",
        "does",
        "did",
        "have",
        "has",
        "had",
        "will",
        "would",
        "can",
        "could",
        "should",
        "may",
        "so",
        "very",
        "there",
    ]
)
_FILLERS: Final = tuple(sorted(EMPTY_ENGLISH))


class Meanings:
    """Draws pairs from `rng`. The shares were set by hand: most of a batch are sentences, as in real use."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._writer = Writer(rng)

    def batch(self, size: int) -> list[Pair]:
        """At most `size` pairs, in which no text occurs twice. Half of the intents' sentences share a few intents and
        words. They differ in one word or one intent only, which makes them hard to tell apart."""
        kinds: tuple[tuple[float, Callable[[], Pair]], ...] = (
            (0.16, self._word), (0.06, self._definition), (0.30, self._chinese), (0.24, self._english), (0.24, self._intent),
        )  # fmt: skip
        self._shared_fillings = [self._filling() for _ in range(4)]
        self._shared_intents = self._rng.sample(range(len(intents.INTENTS)), 3)
        pairs: list[Pair] = []
        seen: set[str] = set()
        makers = self._rng.choices([make for _, make in kinds], [share for share, _ in kinds], k=size)
        for make in makers:
            for _ in range(20):
                first, second = make()
                if first and second and first not in seen and second not in seen and first != second:
                    break
            else:
                continue
            if held_out.allowed(first) and held_out.allowed(second):
                seen |= {first, second}
                pairs.append((first, second) if self._rng.random() < 0.5 else (second, first))
        return pairs

    # Words

    def _word(self) -> Pair:
        """A Chinese word with an English meaning, or two English words of a synset. Common words are drawn more often."""
        if self._rng.random() < 0.2:
            word, others = self._rng.choice(_synonym_pairs())
            return word, self._rng.choice(others)
        entry = entry_words().draw(self._rng.random())
        return entry, self._rng.choice(dictionary.chinese_to_english()[entry])

    def _definition(self) -> Pair:
        synset = self._rng.choice(dictionary.synsets())
        text = synset.definition
        if synset.examples and self._rng.random() < 0.3:
            text = self._rng.choice(synset.examples)
        return ", ".join(self._rng.sample(synset.words, min(len(synset.words), 2))), text

    # Free sentences

    def _chinese(self) -> Pair:
        words = self._rng.choice(cut_sentences())
        if self._rng.random() < 0.75:
            return self._chinese_variant(words, 0.15), self._in_english(words)
        return self._chinese_variant(words, 0.1), self._chinese_variant(words, 0.5)

    def _chinese_variant(self, words: tuple[str, ...], replaced: float) -> str:
        out = []
        for word in self._moved(words):
            if (word in EMPTY_CHINESE and self._rng.random() < 0.35) or self._rng.random() < 0.05:
                continue
            others = dictionary.chinese_synonyms().get(word)
            out.append(self._rng.choice(others) if others and self._rng.random() < replaced else word)
        return "".join(out)

    def _in_english(self, words: tuple[str, ...]) -> str:
        """A word-for-word translation. Words that the dictionary lacks are dropped or stay Chinese."""
        out = []
        for word in self._moved(words):
            meanings = dictionary.chinese_to_english().get(word)
            if word in EMPTY_CHINESE and self._rng.random() < 0.8:
                continue
            if meanings:
                out.append(self._inflected(meanings[0] if self._rng.random() < 0.7 else self._rng.choice(meanings)))
            elif self._rng.random() < 0.3:
                out.append(word)
            if self._rng.random() < 0.15:
                out.append(self._rng.choice(_FILLERS))
        return " ".join(out)

    def _english(self) -> Pair:
        words = tuple(self._rng.choice(plain_english()).split())
        if self._rng.random() < 0.65:
            return self._english_variant(words, 0.1), self._in_chinese(words)
        return self._english_variant(words, 0.1), self._english_variant(words, 0.4)

    def _english_variant(self, words: tuple[str, ...], replaced: float) -> str:
        out = []
        for word in self._moved(words):
            if (word in EMPTY_ENGLISH and self._rng.random() < 0.35) or self._rng.random() < 0.05:
                continue
            others = dictionary.synonyms().get(base(word))
            out.append(self._rng.choice(others) if others and self._rng.random() < replaced else word)
        return " ".join(out)

    def _in_chinese(self, words: tuple[str, ...]) -> str:
        out = []
        for word in self._moved(words):
            if word in EMPTY_ENGLISH and self._rng.random() < 0.85:
                continue
            meanings = dictionary.english_to_chinese().get(base(word))
            if meanings:
                out.append(meanings[0] if self._rng.random() < 0.6 else self._rng.choice(meanings))
            elif self._rng.random() < 0.3:
                out.append(f" {word} ")
            if self._rng.random() < 0.15:
                out.append(self._rng.choice("的了是在把就"))
        return "".join(out)

    def _moved(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """The words, sometimes with the end first."""
        if len(words) < 4 or self._rng.random() < 0.6:
            return words
        cut = self._rng.randrange(1, len(words))
        return words[cut:] + words[:cut]

    def _inflected(self, phrase: str) -> str:
        """The phrase, sometimes with an ending, because the dictionary has none."""
        draw = self._rng.random()
        if draw > 0.3 or " " in phrase or len(phrase) < 3:
            return phrase
        stem = phrase[:-1] if phrase.endswith("e") and draw < 0.2 else phrase
        return stem + ("ing" if draw < 0.1 else "ed" if draw < 0.2 else "s")

    # Sentences of intents

    def _filling(self) -> dict[str, tuple[str, ...]]:
        rng = self._rng
        who, whom = rng.sample(intents.WHO, 2)
        first, second = (rng.choice(nouns()) for _ in range(2))
        return {
            "n": first, "m": second, "v": rng.choice(verbs()), "who": who, "whom": whom,
            "when": rng.choice(intents.WHEN), "num": rng.choice(intents.NUMBERS),
        }  # fmt: skip

    def _intent(self) -> Pair:
        rng = self._rng
        close = rng.random() < 0.5
        wordings = intents.INTENTS[rng.choice(self._shared_intents) if close else rng.randrange(len(intents.INTENTS))]
        filling = dict(rng.choice(self._shared_fillings)) if close else self._filling()
        if close:
            changed = rng.choice(tuple(filling))
            filling[changed] = self._filling()[changed]
        languages: tuple[Language, Language] = rng.choice((("zh", "en"), ("zh", "en"), ("zh", "zh"), ("en", "en")))
        if languages[0] == languages[1]:
            texts = rng.sample(wordings[languages[0]], 2)
        else:
            texts = [rng.choice(wordings[language]) for language in languages]
        first, second = (self._filled(text, filling, side) for text, side in zip(texts, languages, strict=True))
        return first, second

    def _filled(self, text: str, filling: dict[str, tuple[str, ...]], language: Language) -> str:
        side = 0 if language == "zh" else 1

        def word(match: re.Match[str]) -> str:
            # Numbers have a third form: digits.
            return filling[match[1]][-1 if match[1] == "num" and self._rng.random() < 0.3 else side]

        return re.sub(r"eed\b", "ed", re.sub(r"\{(\w+)\}", word, text))


def base(word: str) -> str:
    """The dictionary form of a word: without its ending, if the rest is a known word."""
    known = dictionary.english_to_chinese()
    if word in known:
        return word
    for ending, instead in (
        ("ies", "y"),
        ("es", ""),
        ("s", ""),
        ("ied", "y"),
        ("ed", ""),
        ("ed", "e"),
        ("ing", ""),
        ("ing", "e"),
    ):
        if word.endswith(ending) and (stem := word[: -len(ending)] + instead) in known:
            return stem
    for ending in ("ed", "ing"):
        if word.endswith(ending) and len(word) > len(ending) + 3 and (stem := word[: -len(ending) - 1]) in known:
            return stem
    return word


@cache
def entry_words() -> lexicon.Weighted:
    words = list(dictionary.chinese_to_english())
    shares = lexicon.chinese_frequencies()
    return lexicon.Weighted(words, [shares.get(word, 1e-8) for word in words], 0.4)


@cache
def _synonym_pairs() -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple(dictionary.synonyms().items())


@cache
def plain_english() -> tuple[str, ...]:
    """Examples and definitions with 4 to 16 words, letters only."""
    found = []
    for text in lexicon.english_sentences():
        words = re.findall(r"[a-z']+", text)
        if 4 <= len(words) <= 16:
            found.append(" ".join(words))
    return tuple(found)


@cache
def cut_sentences(most: int = 60_000) -> tuple[tuple[str, ...], ...]:
    """Reviews, small talk and news, split into 3 to 14 words, without punctuation."""
    import jieba

    rng = random.Random("sentences")
    found: list[tuple[str, ...]] = []
    for sentence in lexicon.tagged_sentences():
        words: list[str] = []
        for word, tag in (*sentence, ("，", "w")):
            if tag[0] == "w" or len(words) == 14:
                if len(words) >= 3:
                    found.append(tuple(words))
                words = []
            if tag[0] != "w" and re.fullmatch("[\u4e00-\u9fff]+", word):
                words.append(word)
    found = rng.sample(found, min(len(found), most // 2))
    for text in rng.sample(lexicon.chinese_sentences(), min(len(lexicon.chinese_sentences()), most // 2)):
        words = [word for word in jieba.cut(text.lower()) if re.fullmatch("[\u4e00-\u9fff]+|[a-z]+", word)][:14]
        if len(words) >= 3:
            found.append(tuple(words))
    return tuple(found)


@cache
def nouns() -> tuple[tuple[str, str], ...]:
    return _aligned("n", "noun", 3000)


@cache
def verbs() -> tuple[tuple[str, str], ...]:
    return _aligned("v", "verb", 900)


def _aligned(tag: str, kind: str, most: int) -> tuple[tuple[str, str], ...]:
    """The most common Chinese words of one part of speech whose first meaning is an English word of the same kind."""
    english = frozenset(lexicon.english_by_kind()[kind])
    shares = lexicon.chinese_frequencies()
    chinese = frozenset(lexicon.chinese_words()[tag].items)
    pairs = [
        (entry.chinese, meaning)
        for entry in dictionary.entries()
        if len(entry.chinese) >= 2 and entry.chinese in chinese
        for meaning in entry.english[:1]
        if meaning in english
    ]
    return tuple(sorted(pairs, key=lambda pair: (-shares.get(pair[0], 0.0), pair))[:most])
