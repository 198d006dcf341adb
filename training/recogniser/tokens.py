"""The recogniser's tokens: common Han characters, English pieces, letters, punctuation and SenseVoice's marks."""

from __future__ import annotations

import random
import re
import string
from pathlib import Path
from typing import Final

from training import lexicon
from training.sentences import PUNCTUATION

PIECES: Final = 1_400
WORD_START: Final = "▁"
BLANK: Final = 0
MARKS: Final = (
    "<blk>", "<s>", "</s>", "<unk>", "<|zh|>", "<|en|>", "<|yue|>", "<|ja|>", "<|ko|>", "<|nospeech|>", "<|NEUTRAL|>",
    "<|HAPPY|>", "<|SAD|>", "<|ANGRY|>", "<|EMO_UNKNOWN|>", "<|Speech|>", "<|BGM|>", "<|Event_UNK|>", "<|withitn|>", "<|woitn|>",
)  # fmt: skip
_UNIT = re.compile(r"[a-z']+|[^\sa-z']")


class Tokens:
    """`symbols` in the order of their ids."""

    def __init__(self, symbols: list[str]) -> None:
        self.symbols = symbols
        self.id = {symbol: i for i, symbol in enumerate(symbols)}
        latin = re.compile(f"{WORD_START}?[a-z']+")
        self._pieces = frozenset(symbol for symbol in symbols if latin.fullmatch(symbol))
        self._longest = max(map(len, self._pieces))
        self.pieces = [self.id[symbol] for symbol in symbols if symbol in self._pieces]
        """Ids of letters and English pieces."""

    @classmethod
    def make(cls) -> Tokens:
        """New tokens. Byte-pair merging (Sennrich et al., arXiv:1508.07909) finds the pieces in common English words."""
        alphabet = [*string.ascii_lowercase, "'"]
        letters = [WORD_START + c for c in alphabet] + alphabet
        return cls([*MARKS, *PUNCTUATION, *letters, *_pieces(set(letters)), *lexicon.characters()])

    @classmethod
    def read(cls, path: Path) -> Tokens:
        return cls([line.rpartition(" ")[0] for line in path.read_text(encoding="utf-8").splitlines()])

    def write(self, path: Path) -> None:
        """Write the tokens in sherpa-onnx's format: a symbol, a space, its number."""
        path.write_text("".join(f"{symbol} {i}\n" for i, symbol in enumerate(self.symbols)), encoding="utf-8")

    def encode(self, text: str, rng: random.Random | None = None) -> list[int]:
        """Ids of `text`. Words are split into the longest pieces. With `rng` they are sometimes split into shorter
        ones, which improves the spelling of unseen words (as BPE-dropout, arXiv:1910.13267). Raises KeyError for
        unknown characters."""
        ids: list[int] = []
        for unit in _UNIT.findall(text):
            ids += self._word(WORD_START + unit, rng) if unit[0] in "'" + string.ascii_lowercase else [self.id[unit]]
        return ids

    def decode(self, ids: list[int]) -> str:
        return "".join(self.symbols[i] for i in ids if i >= len(MARKS)).replace(WORD_START, " ").strip()

    def _word(self, word: str, rng: random.Random | None) -> list[int]:
        ids, start = [], 0
        while start < len(word):
            lengths = [
                n
                for n in range(min(self._longest, len(word) - start), 0, -1)
                if word[start : start + n] in self._pieces
            ]
            chosen = lengths[0] if rng is None or rng.random() > 0.08 else rng.choice(lengths)
            ids.append(self.id[word[start : start + chosen]])
            start += chosen
        return ids


def _pieces(letters: set[str]) -> list[str]:
    import wordfreq
    from tokenizers import Tokenizer, models, trainers

    shares = wordfreq.get_frequency_dict("en", wordlist="best")
    common = [word for word in shares if re.fullmatch("[a-z']+", word)][:60_000]
    weighted = [WORD_START + word for word in common for _ in range(max(1, int((shares[word] * 1e6) ** 0.5)))]
    tokenizer = Tokenizer(models.BPE())
    alphabet = [WORD_START, *string.ascii_lowercase, "'"]
    trainer = trainers.BpeTrainer(vocab_size=PIECES + len(alphabet), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(weighted, trainer)
    found = tokenizer.get_vocab()
    return sorted(
        (piece for piece in found if piece not in letters and piece != WORD_START), key=lambda piece: found[piece]
    )
