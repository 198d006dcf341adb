"""Words in running text: where one begins and ends, which ones are ordinary, and how often some would come together by chance.

Frequencies of words are those of pyspellchecker (film subtitles, so spoken language); Chinese is cut into words by jieba's
dictionary.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any, Final

from speech.normalise import HAN, UNIT, is_han

RARE: Final = 1 / 60_101_967
"""Once in as many words as jieba's dictionary counts. What comes together less often by chance was hardly said."""
COMMON: Final = 2e-7
"""Once in five million words: from there on a word is an ordinary one, whatever else bears it as a name (Rust, Hive, Jest)."""
_UNSEEN = 1e-9

LISTED = frozenset({"de", "en", "es", "fr", "it", "nl", "pt"})
"""Languages with a list of words. Other languages in Latin letters have none here: their words cannot be told from names."""
_OTHER_LETTERS = frozenset(
    {"ar", "be", "bg", "bn", "el", "fa", "he", "hi", "hy", "ja", "ka", "kk", "km", "ko", "lo", "mk", "mn", "my", "ne", "ru", "ta",
     "te", "th", "uk", "ur", "yue", "zh"}
)  # fmt: skip
"""Latin words in these languages are names or English."""

_UNSPACED = re.compile(f"[{HAN}\u3041-\u309f\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
_KATAKANA = re.compile("[\u30a1-\u30fa\u30fc-\u30ff\uff66-\uff9f]")
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")
_HAN_RUN = re.compile(f"[{HAN}]+")
_CLITIC = re.compile(r"['’](?:s|d|m|ll|re|ve)(?![^\W_])", re.IGNORECASE)
_ELISION = re.compile(r"(?<![^\W_])(?:[ldjmnstc]|qu|un|all|dell|dall|nell|sull)['’]$", re.IGNORECASE)
_PARTICLE = re.compile(
    "(?:으로|에서|에게|부터|까지|이나|라는|처럼|보다|[을를이가은는에의로와과도만])(?![\uac00-\ud7af])"
)
_ENDINGS = ("ness", "ing", "ers", "est", "ed", "er", "es", "ly", "s", "d")


def occurrences(text: str, words: str, *, any_case: bool = False) -> Iterator[tuple[int, int]]:
    """Where `words` stand in `text` as whole words, apart from each other. A space matches any spaces, or a hyphen."""
    parts = words.split()
    if not parts or parts[0].lower() not in text.lower():  # most terms are nowhere near
        return
    pattern = r"(?:\s+|[-‐‑])".join(re.escape(part) for part in parts)
    for match in re.finditer(pattern, text, re.IGNORECASE if any_case else 0):
        if not inside(text, *match.span()):
            yield match.span()


def mentions(text: str, term: str) -> bool:
    """Whether the text has a term as it is written, in any case unless the term is an ordinary word: "go" is not Go."""
    return next(occurrences(text, term, any_case=not is_common(term)), None) is not None


def inside(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] begins or ends inside a word.

    A word holds its letters, digits and underscores, in any case ("conKatenate"), the apostrophe of don't, and the dot of
    node.js. Clitics (Kafka's, Kafka'll, l'Kafka) and Korean particles are no part of it. A hyphen joins ordinary words to one
    ("state-of-the-art"), but not a name with its neighbour ("Kubernetes-based"). Han characters stand alone here:
    `cuts_word` knows more about them.
    """
    if start >= end:
        return True
    if start and (_one_word(text[start - 1], text[start]) or (_connected(text, start) and not _elided(text, start))):
        return True
    if end == len(text):
        hyphen = False
    elif _HANGUL.match(text[end - 1]) and end - start >= 3 and _PARTICLE.match(text, end):
        return False
    elif _one_word(text[end - 1], text[end]):
        return True
    elif _CLITIC.match(text, end):
        return False
    elif text[end] in "+#" and text[end - 1].isalnum() and end - start <= 2:  # C is not C++
        return True
    else:
        hyphen = _hyphen(text, end)
        if _connected(text, end):
            return True
    hyphen = hyphen or _hyphen(text, start - 1)
    return hyphen and is_common(text[start:end])


def _one_word(first: str, second: str) -> bool:
    """Whether two neighbouring characters belong to one word."""
    if not (_is_letter(first) and _is_letter(second)) or _UNSPACED.match(first) or _UNSPACED.match(second):
        return False
    return all(bool(script.match(first)) == bool(script.match(second)) for script in (_KATAKANA, _HANGUL))


def _is_letter(char: str) -> bool:
    return char.isalnum() or char == "_" or unicodedata.category(char) in ("Mn", "Mc")


def _spaced_letter(text: str, at: int) -> bool:
    return 0 <= at < len(text) and _is_letter(text[at]) and not _UNSPACED.match(text[at])


def _connected(text: str, at: int) -> bool:
    """Whether a connector joins the letters before and after the boundary `at`."""
    return any(
        0 < i < len(text) - 1 and text[i] in "'’.@" and _spaced_letter(text, i - 1) and _spaced_letter(text, i + 1)
        for i in (at - 1, at)
    )


def _elided(text: str, at: int) -> bool:
    """Whether what stands before is a short word of French or Italian without its vowel: l'hôtel, dell'arte."""
    return bool(_ELISION.search(text[max(0, at - 6) : at]))


def _hyphen(text: str, at: int) -> bool:
    return (
        0 < at < len(text) - 1 and text[at] in "-‐‑" and _spaced_letter(text, at - 1) and _spaced_letter(text, at + 1)
    )


# Ordinary words ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=3)
def _counts(language: str) -> tuple[dict[str, int], int]:
    from spellchecker import SpellChecker

    found = SpellChecker(language=language, distance=1).word_frequency
    return found.dictionary, found.total_words


def frequency(word: str, language: str = "en") -> float:
    """The share of a word in running text, 0 for one that is in no list; of an inflected form, if need be, that of its base."""
    counts, total = _counts(language)
    word = _CLITIC.sub("", word.lower())
    found = counts.get(word, 0) or max((counts.get(base, 0) for base in _bases(word)), default=0)
    return found / total


def _bases(word: str) -> Iterator[str]:
    for ending in _ENDINGS:
        base = word.removesuffix(ending)
        if base != word and len(base) > 2:
            yield base
            yield base + "e"
            if base[-1] == base[-2]:
                yield base[:-1]
            if base[-1] == "i":
                yield base[:-1] + "y"


def languages(language: str | None) -> tuple[str, ...]:
    """The lists that Latin words of a text in `language` are looked up in; none if there is no list of it."""
    code = (language or "en").lower().partition("-")[0]
    if code in _OTHER_LETTERS:
        return ("en",)
    return tuple(dict.fromkeys((code, "en"))) if code in LISTED else ()


def is_listed(word: str, language: str | None) -> bool:
    """Whether a word is one of the language, however rare. Words of English are words of every language here."""
    return any(frequency(word, name) > 0 for name in languages(language))


@lru_cache(maxsize=4096)
def is_common(text: str) -> bool:
    """Whether `text` is an ordinary word of English or Chinese, or a few that come together often."""
    return chance(text) >= COMMON


@lru_cache(maxsize=65_536)
def chance(text: str, language: str | None = None) -> float:
    """The share of running text that would be `text` if words came in any order: the product of the words' shares."""
    product = 1.0
    for run in _HAN_RUN.findall(text):
        # One more than the expected number of occurrences in the dictionary's corpus, rounded down.
        product *= max(_UNSEEN, (_jieba().suggest_freq(_simplified(run)) - 1) * RARE)
    for word in (match for match in UNIT.findall(text) if not is_han(match)):
        product *= max(_UNSEEN, *(frequency(word, name) for name in languages(language)), 0.0)
    return product if UNIT.search(text) else 0.0


# Chinese ----------------------------------------------------------------------------------------------------------


@cache
def _jieba() -> Any:
    import rjieba

    return rjieba.Jieba()


@cache
def _to_simplified() -> Any:
    import opencc

    return opencc.OpenCC("t2s")


def _simplified(han: str) -> str:
    converted = str(_to_simplified().convert(han))
    return converted if len(converted) == len(han) else han


@lru_cache(maxsize=1024)
def breaks(text: str) -> frozenset[int]:
    """Positions inside words of Han characters, where nothing may begin or end."""
    found = set[int]()
    for run in _HAN_RUN.finditer(text):
        for _, start, end in _jieba().tokenize(_simplified(run.group()), hmm=False):
            found.update(range(run.start() + start + 1, run.start() + end))
    return frozenset(found)


def cuts_word(text: str, start: int, end: int) -> bool:
    """Whether text[start:end] begins or ends inside a word of Han characters: 密等 does in 秘密等."""
    unbreakable = breaks(text)
    return start in unbreakable or end in unbreakable


def han_words(text: str) -> list[str]:
    """The words of more than one Han character in `text`."""
    return [
        word for run in _HAN_RUN.findall(text) for word in _jieba().cut(_simplified(run), hmm=False) if len(word) > 1
    ]


def is_han_word(text: str) -> bool:
    """Whether `text` is one word of Han characters, however rare."""
    return is_han(text) and bool(_jieba().has_word(_simplified(text)))
