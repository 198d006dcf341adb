"""Examples of the three tasks: review, summary, and questions about itself. Requests are exactly those of the pipeline."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pipelines.glossary import Term
from pipelines.meeting.review.prompts import REVIEW_SYSTEM, ask_review
from pipelines.meeting.summarize import SUMMARY_SYSTEM, ask_summary
from training import held_out, lexicon
from training.review import talk
from training.review.misheard import Place, garbled, places, respelt
from training.sentences import Writer, tidy

GLOSSARY_TERMS: Final = 6
"""The limit in the model's card. More terms only distract such a small model."""
NEGATIVE_SHARE, MAX_OTHERS = 0.5, 7
DEVELOPMENT_PAIRS: Final = 500
"""The number of pairs at the end of a bank that no training uses."""
FRAMES: Final = (
    '{"segments": [', '{"id": "', '", "edits": [', '{"from": "', '", "to": "', '"}', "]}", '{"overview": "', '", "items": [',
    '{"segment_ids": ["', '"], "kind": "', '", "quote": "',
    "Glossary:\n- ", "\n- ", "There is no glossary.", "\n\n<transcript>\n[s", "<transcript>\n[s", "\n[s", "] ", "\n</transcript>",
    *(f"{number:02d}" for number in range(100)),
)  # fmt: skip
"""Fixed pieces of requests and answers, one token each. Digits come in pairs, because single digits are ambiguous to
copy: in an id like s0007 both 0 and 7 follow a 0."""
PROMPTS: Final = (REVIEW_SYSTEM, SUMMARY_SYSTEM)

Task = Literal["drill", "review", "summary", "chat"]
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Example:
    """A request with its answer. `marked` are the difficult pieces of the answer; they weigh more in the loss."""

    messages: Messages
    answer: str
    marked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """A sentence and a recogniser's transcript of it."""

    said: str
    heard: str


def read_bank(folder: Path) -> list[Pair]:
    rows = [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    if bad := [row["said"] for row in rows if not held_out.allowed(row["said"])]:
        raise ValueError(f"{folder} has {len(bad)} sentences of the evaluation sets")
    return [Pair(row["said"], row["heard"]) for row in rows if row["heard"]]


@dataclass(frozen=True)
class Bank:
    """Sentences with a recogniser's transcripts, and the misheard terms, which also serve in other glossaries."""

    pairs: Sequence[Pair]
    terms: Sequence[str]

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Bank:
        rng = random.Random(3)
        found = (place.said for pair in pairs for place in places(pair.said, pair.heard, rng, wrong=True))
        return cls(pairs, sorted(filter(held_out.allowed, found)))


class Author:
    """Writes examples, drawn from `rng`. The share `simulated` has simulated mistakes, the rest has mistakes of the
    bank."""

    def __init__(self, rng: random.Random, bank: Bank, *, simulated: float) -> None:
        self._rng, self._bank, self._simulated = rng, bank, simulated
        self._writer = Writer(rng)

    def example(self, task: Task) -> Example:
        return {"drill": self.drill, "review": self.review, "summary": self.summary, "chat": self.chat}[task]()

    def drill(self) -> Example:
        """An exercise in comparing and copying alone: misheard terms among unrelated words. All of them must be
        corrected.

        Half of the answers are edits, as in a review. The other half lack the system prompt and are the whole corrected
        text, in which every token teaches copying.
        """
        rng = self._rng
        pieces: list[tuple[str, str]] = []
        chosen: list[Place] = []
        for _ in range(rng.randint(1, 3)):
            filler = self._filler()
            term = self._writer.term("zh" if rng.random() < 0.75 else "en")
            place = Place(term, respelt(term, rng) if term.isascii() else garbled(term, rng, 0.6))
            pieces += [(filler, filler), (place.said, place.heard)]
            if place.said != place.heard and place not in chosen and held_out.allowed(term):
                chosen.append(place)
        said, heard = (tidy(" ".join(piece[side] for piece in pieces)) for side in (0, 1))
        chosen = [place for place in chosen if place.heard in heard]
        terms = [*(place.said for place in chosen), *self._others(rng.randint(0, 2))]
        rng.shuffle(terms)
        name = f"s{rng.randint(1, 400):04d}"
        messages = ask_review([], [(name, heard)], [], [Term(term) for term in terms], glossary_terms=GLOSSARY_TERMS)
        if rng.random() < 0.5:
            return _with_edits(messages, name, heard, chosen)
        return Example(messages[1:], said, tuple(place.said for place in chosen))

    def _filler(self) -> str:
        words = lexicon.chinese_words()["*"] if self._rng.random() < 0.75 else lexicon.english_words()
        return " ".join(words.draw(self._rng.random()) for _ in range(self._rng.randint(1, 3)))

    def review(self) -> Example:
        rng = self._rng
        negative = rng.random() < NEGATIVE_SHARE
        for _ in range(20):
            pair = self._simulate() if rng.random() < self._simulated else rng.choice(self._bank.pairs)
            wrong = places(pair.said, pair.heard, rng, wrong=True)
            if negative or wrong:
                break
        chosen = [] if negative else rng.sample(wrong, min(len(wrong), rng.choice((1, 1, 1, 2))))
        chosen = [place for i, place in enumerate(chosen) if place.heard not in [other.heard for other in chosen[:i]]]
        right = places(pair.said, pair.heard, rng, wrong=False) if rng.random() < 0.4 else []
        known = [place.said for place in rng.sample(right, min(len(right), rng.randint(1, 2)))]
        terms = list(
            dict.fromkeys([*(place.said for place in chosen), *known, *self._others(rng.randint(0, MAX_OTHERS))])
        )
        # The glossary must not contain a misheard term that the answer does not correct.
        wanted = {place.said for place in chosen}
        terms = [term for term in terms if term in wanted or term not in pair.said or term in pair.heard]
        rng.shuffle(terms)
        name = f"s{rng.randint(1, 400):04d}"
        glossary = [Term(term, self._aliases(term)) for term in terms]
        messages = ask_review([], [(name, pair.heard)], [], glossary, glossary_terms=GLOSSARY_TERMS)
        shown = {
            line[2:].split(" (heard as")[0] for line in messages[1]["content"].splitlines() if line.startswith("- ")
        }
        return _with_edits(messages, name, pair.heard, [place for place in chosen if place.said in shown])

    def _simulate(self) -> Pair:
        sentence = self._writer.sentence()
        text, elsewhere = sentence.text, self._rng.choice((0.02, 0.1, 0.25))
        if sentence.language == "zh" and self._rng.random() < 0.8:
            first = self._rng.randrange(max(1, len(text) - 4))
            last = first + self._rng.randint(2, 5)
            heard = garbled(text[:first], self._rng, elsewhere) + garbled(text[first:last], self._rng, 0.6)
            return Pair(text, heard + garbled(text[last:], self._rng, elsewhere))
        words = text.split(" ")
        place = self._rng.randrange(len(words))
        words[place] = re.sub("[a-z]{3,}", lambda match: respelt(match[0], self._rng), words[place])
        return Pair(text, garbled(" ".join(words), self._rng, elsewhere))

    def _others(self, count: int) -> list[str]:
        """Terms that are unrelated to the sentence: invented ones, and terms of other sentences."""
        found = list[str]()
        while len(found) < count:
            if self._bank.terms and self._rng.random() < 0.6:
                term = self._rng.choice(self._bank.terms)
            else:
                term = self._writer.term("zh" if self._rng.random() < 0.6 else "en")
            if held_out.allowed(term):
                found.append(term)
        return found

    def _aliases(self, term: str) -> tuple[str, ...]:
        if self._rng.random() > 0.04:
            return ()
        alias = respelt(term, self._rng) if term.isascii() else garbled(term, self._rng, 0.5)
        return (alias,) if alias != term else ()

    def summary(self) -> Example:
        """A few lines of a meeting. Frames made them, so the decisions, tasks and questions are known."""
        rng = self._rng
        language = rng.choice(("zh", "zh", "en"))
        lines: list[tuple[str, str, str]] = []
        items: list[dict[str, Any]] = []
        topics: list[str] = []
        first = rng.randint(1, 60)
        for i in range(rng.choice((1, 2, 2, 3, 3, 3, 4, 4, 5, 6))):
            mixed = rng.random() < 0.2
            spoken = ("en" if language == "zh" else "zh") if mixed else language
            kind, text, nouns = self._line(spoken)
            name = f"s{first + i:04d}"
            text = garbled(text, rng, 0.02)
            lines.append((name, f"S{rng.randint(1, 4)}", text))
            topics += [noun for noun in nouns if noun in text and not mixed]
            if kind is not None:
                # The id comes first: then the model only has to find the kind and quote of that line. The quote also serves as
                # the item's text, so the model writes it once.
                items.append({"segment_ids": [name], "kind": kind, "quote": text})
        named = list(dict.fromkeys(topics))[:2]
        overview = talk.overview(named, language)
        answer = json.dumps({"overview": overview, "items": items}, ensure_ascii=False)
        return Example(ask_summary(lines), answer, tuple(named))

    def _line(self, language: str) -> tuple[str | None, str, list[str]]:
        kind = self._rng.choices((None, "decision", "action", "question"), (4, 2, 3, 1))[0]
        if kind is None and self._rng.random() < 0.5:
            return None, self._writer.sentence("zh" if language == "zh" else "en").text, []
        nouns: list[str] = []
        frame = self._rng.choice(talk.KINDS[language][kind] if kind else talk.REMARKS[language])
        text = self._writer.fill(frame, "zh" if language == "zh" else "en", nouns)
        return kind, text, nouns

    def chat(self) -> Example:
        question, answer = self._rng.choice(talk.CHAT)
        before: Messages = []
        if self._rng.random() < 0.2:
            earlier = self._rng.choice(talk.CHAT)
            before = [{"role": "user", "content": earlier[0]}, {"role": "assistant", "content": earlier[1]}]
        if self._rng.random() < 0.1:
            before = [{"role": "system", "content": "You are a helpful assistant."}, *before]
        return Example([*before, {"role": "user", "content": question}], answer)


def _with_edits(messages: Messages, name: str, heard: str, chosen: list[Place]) -> Example:
    edits = [
        {"from": place.heard, "to": place.said} for place in sorted(chosen, key=lambda place: heard.find(place.heard))
    ]
    segments = [{"id": name, "edits": edits}] if edits else []
    marked = tuple(text for place in chosen for text in (place.heard, place.said))
    return Example(messages, json.dumps({"segments": segments}, ensure_ascii=False), marked)
