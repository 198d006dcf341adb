"""Random sentences in Chinese, English and mixed, from whole dictionaries, so that no template can be learnt.

A sentence contains only letters, Han characters, `'` and the punctuation `，。？,.?`. Numbers are written as spoken.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from training import frames, held_out, lexicon, numbers

Language = Literal["zh", "en"]
PUNCTUATION: Final = "，。？,.?"
_CLEAN: Final = re.compile(r"[\u4e00-\u9fffa-z' ，。？,.?]+")
_CONTENT_TAGS: Final = "nvads"
MAX_HAN, MAX_LETTERS = 34, 110
WORK_SHARE: Final = 0.3
"""The share of slots that get words of meetings about software, the demonstration's topic."""


@dataclass(frozen=True)
class Sentence:
    """`language` has SenseVoice's name. It is the language of the frame, not of a foreign word in it."""

    text: str
    language: Language

    @property
    def bare(self) -> str:
        """The text without punctuation."""
        return tidy("".join(" " if c in PUNCTUATION else c for c in self.text))


class Writer:
    """Draws sentences from `rng`. The shares were set by hand: an open vocabulary comes first, context second."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._known = frozenset(lexicon.characters())
        self._kinds: tuple[tuple[float, Language, Callable[[], str]], ...] = (
            (0.16, "zh", self._chinese_text),
            (0.12, "zh", self._chinese_news),
            (0.14, "zh", self._chinese_frame),
            (0.10, "zh", self._chinese_words),
            (0.03, "zh", self._chinese_characters),
            (0.12, "zh", self._mixed),
            (0.15, "en", self._english_text),
            (0.08, "en", self._english_frame),
            (0.10, "en", self._english_words),
        )

    def sentence(self, language: Language | None = None) -> Sentence:
        """One sentence that training may use, in `language` if given."""
        kinds = [kind for kind in self._kinds if language in (None, kind[1])]
        while True:
            _, found, write = self._rng.choices(kinds, [kind[0] for kind in kinds])[0]
            text = tidy(write())
            if self._fits(text):
                return Sentence(text, found)

    def fill(self, frame: str, language: Language, nouns: list[str] | None = None) -> str:
        """`frame` with its slots filled. Appends the words for {n} and {t} to `nouns`."""
        slot = self._chinese_slot if language == "zh" else self._english_slot

        def noted(name: str) -> str:
            word = slot(name)
            if nouns is not None and name in "nt":
                nouns.append(word.strip())
            return word

        while True:
            text = tidy(self._filled(frame, noted))
            if self._fits(text):
                return text
            if nouns is not None:
                nouns.clear()

    def term(self, language: Language) -> str:
        """An invented term. Chinese: a name, joined words or random characters. English: joined or invented words."""
        return self._chinese_term() if language == "zh" else self._english_term()

    def _fits(self, text: str) -> bool:
        han = [c for c in text if "\u4e00" <= c <= "\u9fff"]
        letters = sum(c.isascii() and c.isalpha() for c in text)
        return (
            _CLEAN.fullmatch(text) is not None
            and len(han) + letters / 3 >= 2
            and len(han) + letters * MAX_HAN / MAX_LETTERS <= MAX_HAN
            and self._known >= set(han)
            and held_out.allowed(text)
        )

    # Chinese

    def _chinese_text(self) -> str:
        text = self._rng.choice(lexicon.chinese_sentences()).lower()
        text = re.sub(r"[、：:；;—-]+", "，", numbers.spoken_chinese(text))
        text = re.sub(r"[“”\"（）()《》【】\[\]]", "", text)
        clauses = [clause for clause in re.split("[，,]", text) if clause.strip()]
        if not clauses:
            return ""
        first = self._rng.randrange(len(clauses))
        return "，".join(clauses[first : first + self._rng.randint(1, 3)]) + self._final_mark(clauses[-1])

    def _chinese_news(self) -> str:
        """Up to three clauses of tagged news. Words of the same kind replace 0, 35 or 70% of the content words."""
        tokens = self._rng.choice(lexicon.tagged_sentences())
        words = lexicon.chinese_words()
        replace = self._rng.choice((0.0, 0.35, 0.7))
        out = []
        for word, tag in tokens:
            if tag[0] in _CONTENT_TAGS and tag[0] in words and self._rng.random() < replace:
                word = words[tag[0]].draw(self._rng.random())
            out.append("，" if word in "，、：；——" else word)
        text = re.sub(r"[“”\"（）()《》]", "", numbers.spoken_chinese("".join(out)))
        clauses = [clause for clause in text.split("，") if clause]
        if not clauses:
            return ""
        first = self._rng.randrange(len(clauses))
        return "，".join(clauses[first : first + self._rng.randint(1, 3)]) + self._final_mark("")

    def _chinese_frame(self) -> str:
        return self._filled(self._rng.choice(frames.CHINESE), self._chinese_slot)

    def _chinese_words(self) -> str:
        words = lexicon.chinese_words()["*"]
        text = "".join(
            self._rng.choice(frames.WORK_CHINESE_OTHER)
            if self._rng.random() < WORK_SHARE / 2
            else words.draw(self._rng.random())
            for _ in range(self._rng.randint(2, 9))
        )
        return text + self._final_mark(text)

    def _chinese_characters(self) -> str:
        return "，".join(self._chinese_term() for _ in range(self._rng.randint(1, 4))) + "。"

    def _mixed(self) -> str:
        """A Chinese sentence with one or two English words or terms in it."""
        frame = self._rng.choice(frames.CHINESE)
        places = [match.span() for match in re.finditer(r"\{[nvat]\}", frame)]
        for start, end in sorted(self._rng.sample(places, min(len(places), self._rng.randint(1, 2))), reverse=True):
            frame = frame[:start] + f" {self._english_insert()} " + frame[end:]
        return self._filled(frame, self._chinese_slot)

    def _english_insert(self) -> str:
        draw = self._rng.random()
        if draw < 0.15:
            return self._rng.choice(frames.WORK_ENGLISH_TERMS + frames.WORK_ENGLISH_NOUNS)
        if draw < 0.5:
            return lexicon.english_words(0.5).draw(self._rng.random())
        if draw < 0.75:
            return self._english_term()
        if draw < 0.9:
            return " ".join(lexicon.english_words().draw(self._rng.random()) for _ in range(2))
        return "".join(self._rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(self._rng.randint(2, 4)))

    def _chinese_slot(self, name: str) -> str:
        words = lexicon.chinese_words()
        if name in _WORK_CHINESE:
            if self._rng.random() < WORK_SHARE:
                return self._rng.choice(_WORK_CHINESE[name])
            return words[name].draw(self._rng.random())
        if name == "t":
            return self._chinese_term() if self._rng.random() < 0.6 else f" {self._english_insert()} "
        if name == "num":
            return numbers.chinese(numbers.draw(self._rng))
        choices = {"who": frames.CHINESE_WHO, "when": frames.CHINESE_WHEN, "unit": frames.CHINESE_UNIT}
        return self._rng.choice(choices[name])

    def _chinese_term(self) -> str:
        draw, words = self._rng.random(), lexicon.chinese_words()
        if draw < 0.3:
            single = lexicon.common_characters()
            return "".join(single.draw(self._rng.random()) for _ in range(self._rng.randint(2, 4)))
        if draw < 0.5 and "n" in words:
            return self._name()
        return "".join(words[self._rng.choice("nva")].draw(self._rng.random()) for _ in range(2))

    def _name(self) -> str:
        given = lexicon.common_characters()
        return self._rng.choice(_SURNAMES) + "".join(
            given.draw(self._rng.random()) for _ in range(self._rng.randint(1, 2))
        )

    def _final_mark(self, text: str) -> str:
        return "？" if re.search("[吗呢]$", text) else "。"

    # English

    def _english_text(self) -> str:
        text = self._rng.choice(lexicon.english_sentences())
        text = re.sub(r"[;:—–-]", " ", numbers.spoken_english(text))
        words = text.split()
        if len(words) > 16:
            first = self._rng.randrange(len(words) - 12)
            words = words[first : first + self._rng.randint(6, 12)]
        for i in range(len(words)):
            if self._rng.random() < 0.06:
                words[i] = (
                    self._english_term()
                    if self._rng.random() < 0.4
                    else lexicon.english_words(0.4).draw(self._rng.random())
                )
        return " ".join(words).rstrip(" ,.?!") + ("?" if text.endswith("?") else ".")

    def _english_frame(self) -> str:
        return self._filled(self._rng.choice(frames.ENGLISH), self._english_slot)

    def _english_words(self) -> str:
        words = lexicon.english_words(self._rng.choice((0.4, 0.7)))
        chosen = [
            self._rng.choice(frames.WORK_ENGLISH_OTHER)
            if self._rng.random() < WORK_SHARE / 2
            else words.draw(self._rng.random())
            for _ in range(self._rng.randint(2, 9))
        ]
        if self._rng.random() < 0.4:
            chosen[self._rng.randrange(len(chosen))] = self._english_term()
        return " ".join(chosen) + "."

    def _english_slot(self, name: str) -> str:
        kinds = {"n": "noun", "v": "verb", "a": "adj"}
        if name in kinds:
            if self._rng.random() < WORK_SHARE:
                return self._rng.choice(_WORK_ENGLISH[name])
            if self._rng.random() < 0.3:
                return lexicon.english_words(0.5).draw(self._rng.random())
            return self._rng.choice(lexicon.english_by_kind()[kinds[name]])
        if name == "t":
            return self._english_term()
        if name == "num":
            return numbers.english(numbers.draw(self._rng))
        choices = {"who": frames.ENGLISH_WHO, "when": frames.ENGLISH_WHEN, "unit": frames.ENGLISH_UNIT}
        return self._rng.choice(choices[name])

    def _english_term(self) -> str:
        """A term like a product's name: two joined words, a word with an invented ending, or meaningless syllables."""
        rng, words = self._rng, lexicon.english_words(0.4)
        draw = rng.random()
        if draw < 0.4:
            parts = [word for word in (words.draw(rng.random()) for _ in range(6)) if 3 <= len(word) <= 7]
            return "".join(parts[:2]) if parts else "open"
        if draw < 0.6:
            return words.draw(rng.random()) + rng.choice(_ENDINGS)
        return "".join(
            rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice((1, 2, 2, 3)))
        )

    def _filled(self, frame: str, slot: Callable[[str], str]) -> str:
        return re.sub(r"\{(\w+)\}", lambda match: slot(match[1]), frame)


def tidy(text: str) -> str:
    """The text with single spaces, and spaces only between two Latin words."""
    text = re.sub(r"\s+", " ", text.lower()).strip()
    text = re.sub(f"([{PUNCTUATION}])[{PUNCTUATION} ]*(?=[{PUNCTUATION}])", "", text)
    return re.sub(r"(?<![a-z',.?]) | (?![a-z'])", "", text)


_WORK_CHINESE: Final = {
    "n": frames.WORK_CHINESE_NOUNS,
    "v": frames.WORK_CHINESE_VERBS,
    "a": frames.WORK_CHINESE_ADJECTIVES,
}
_WORK_ENGLISH: Final = {
    "n": frames.WORK_ENGLISH_NOUNS,
    "v": frames.WORK_ENGLISH_VERBS,
    "a": frames.WORK_ENGLISH_ADJECTIVES,
}
_SURNAMES: Final = "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾萧田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈姚卢姜崔钟谭陆汪范金石廖贾夏韦付方白邹孟熊秦邱江尹薛"
_ENDINGS: Final = (
    "er",
    "ly",
    "ify",
    "io",
    "ai",
    "ia",
    "db",
    "ware",
    "flow",
    "base",
    "hub",
    "sense",
    "net",
    "kit",
    "ops",
    "stack",
    "x",
    "us",
    "go",
)
_ONSETS: Final = "b c d f g h j k l m n p r s t v w z br cl cr dr fl gr pl pr qu sh sk sn sp st str th tr ch".split()
_VOWELS: Final = "a e i o u a e i o ea oo ai ee ou".split()
_CODAS: Final = ["", "", "", "n", "r", "s", "t", "l", "m", "x", "ck", "nd", "st", "sh", "ft", "rt"]
