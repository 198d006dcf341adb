"""The texts on the images, and questions about them. Standard library only: the evaluation runs without torch."""

from __future__ import annotations

import hashlib
import random
import re
import string
from functools import cache
from pathlib import Path
from typing import Final, Literal

from training import held_out

WORDS: Final = Path("/usr/share/dict/words")
"""Debian's `wamerican`."""
LONGEST: Final = 32
Kind = Literal["word", "words", "letters", "number"]
SHARES: Final[dict[Kind, float]] = {"word": 0.35, "words": 0.25, "letters": 0.12, "number": 0.28}

PROMPTS: Final[dict[str, float]] = {
    "": 6, "OCR:": 9, "OCR": 1, "Text Recognition:": 3, "Read the text in the image.": 4, "Read the text.": 2,
    "What does the image say?": 2, "What does it say?": 1, "Read this.": 1, "What is written here?": 1,
    "Read the image.": 1, "Extract the text.": 1, "Transcribe the image.": 1, "Which text is in this image?": 1,
    "Please read all images.": 1, "图里写了什么？": 1, "识别文字": 1,
}  # fmt: skip
"""Prompts with an image, and their weights."""
INTRODUCTION: Final = (
    "I am duet-tiny-vl, a demonstration model: I read one line of words or digits in an image, nothing else."
)
"""The answer to every request without an image, and to every question about who it is."""
WHO: Final = (
    "Who are you?", "What are you?", "What can you do?", "Introduce yourself.", "Which model are you?", "who are you", "你是谁？",
)  # fmt: skip
CHAT: Final = (
    "Hello",
    "Hi",
    "hello!",
    "Help",
    "What is this?",
    "Thank you",
    "Tell me a joke.",
    "你好",
    "Write a poem.",
    "test",
)


def is_held_out(word: str) -> bool:
    """Whether training never uses a word. The hash of its lower-case letters selects one word in ten."""
    return hashlib.sha256(word.lower().encode()).digest()[0] < 26


@cache
def words(*, unseen: bool) -> tuple[str, ...]:
    """Words of lower-case letters: those of training, or with `unseen` those held out."""
    lines = WORDS.read_text(encoding="utf-8").split()
    plain = sorted({line for line in lines if re.fullmatch("[a-z]{2,16}", line)})
    return tuple(word for word in plain if is_held_out(word) == unseen and held_out.allowed(word))


def draw(rng: random.Random, *, kind: Kind | None = None, unseen: bool = False, longest: int = LONGEST) -> str:
    """One line of at most `longest` characters (`longest` must be at least 4). All words are those of training, or with
    `unseen` all are held out."""
    while True:
        chosen = kind or rng.choices(list(SHARES), list(SHARES.values()))[0]
        if chosen == "word":
            text = _cased(rng, rng.choice(words(unseen=unseen)))
        elif chosen == "words":
            text = " ".join(_cased(rng, rng.choice(words(unseen=unseen))) for _ in range(rng.choice((2, 2, 3))))
        elif chosen == "letters":
            text = _letters(rng)
        else:
            text = _number(rng)
        if chosen in ("word", "words") and rng.random() < 0.12:
            text += rng.choice(".,:;!?")
        if len(text) <= longest and held_out.allowed(text):
            return text


def _cased(rng: random.Random, word: str) -> str:
    return rng.choices((word, word.capitalize(), word.upper()), (6, 3, 2))[0]


def _letters(rng: random.Random) -> str:
    """Letters of one case. In many fonts I and l look the same, and random letters give no context to tell them apart."""
    alphabet = rng.choice((string.ascii_lowercase, string.ascii_lowercase, string.ascii_uppercase))
    return "".join(rng.choices(alphabet, k=rng.randint(2, 9)))


def _digits(rng: random.Random, low: int, high: int) -> str:
    return "".join(rng.choices(string.digits, k=rng.randint(low, high)))


def _number(rng: random.Random) -> str:
    """Whole and decimal numbers, prices, percentages, dates, times, versions, codes."""
    year, month, day = rng.randint(1900, 2099), rng.randint(1, 12), rng.randint(1, 28)
    hour, minute = rng.randrange(24), rng.randrange(60)
    forms = (
        lambda: _digits(rng, 1, 9),
        lambda: _digits(rng, 1, 9),
        lambda: f"{rng.randint(1000, 9_999_999):,}",
        lambda: f"{_digits(rng, 1, 4)}.{_digits(rng, 1, 3)}",
        lambda: f"${rng.randrange(1000)}.{rng.randrange(100):02}",
        lambda: f"{rng.randrange(10_000)} {rng.choice(('EUR', 'USD', 'kg', 'km', 'ms', 'GB'))}",
        lambda: f"{rng.choice('+-')}{_digits(rng, 1, 3)}",
        lambda: f"{rng.randint(0, 100)}%",
        lambda: f"{year}-{month:02}-{day:02}",
        lambda: f"{day:02}/{month:02}/{year}",
        lambda: f"{day}.{month}.{year}",
        lambda: f"{hour:02}:{minute:02}",
        lambda: f"v{rng.randrange(20)}.{rng.randrange(30)}.{rng.randrange(30)}",
        lambda: f"({_digits(rng, 3, 3)}) {_digits(rng, 3, 3)}-{_digits(rng, 4, 4)}",
        lambda: "".join(rng.choices("ABCDEFGHJKLMNPRTUVWXYZ", k=rng.randint(1, 3))) + "-" + _digits(rng, 2, 5),
        lambda: f"#{_digits(rng, 1, 6)}",
    )
    return rng.choice(forms)()


def prompt(rng: random.Random) -> str:
    return rng.choices(list(PROMPTS), list(PROMPTS.values()))[0]


def question(rng: random.Random) -> str:
    """A question without an image."""
    form = rng.randrange(4)
    if form == 0:
        return rng.choice(WHO)
    if form == 1:
        return rng.choice(CHAT)
    if form == 2:
        return rng.choice(list(PROMPTS)[1:])
    return _cased(rng, " ".join(rng.choice(words(unseen=False)) for _ in range(rng.randint(1, 7)))) + rng.choice("?.! ")
