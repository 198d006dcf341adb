"""The language models' tokenizer: one token per common Han character, short English pieces, bytes otherwise.

Pieces never span a space, and no token begins with one. A word therefore has the same tokens everywhere, so a small
model can copy it. Every text can be encoded: characters without a token of their own become bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from training import lexicon

ENGLISH_PIECES: Final = 700
END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_SPLIT: Final = r"[A-Za-z]+|\p{N}|\s|[^A-Za-z\p{N}\s]"
"""Splits a text into runs of Latin letters and other single characters."""
CHAT_TEMPLATE: Final = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make(prompts: Iterable[str], frames: Iterable[str], characters: Iterable[str]) -> Tokenizer:
    """A tokenizer in which each of `prompts` and each of `frames` is one token. `prompts` are long texts that every
    request repeats word for word; `frames` are fixed pieces of a request or an answer, such as `": "`."""
    frames = sorted(frames, key=len, reverse=True)
    to_byte_letters = ByteLevel(add_prefix_space=False, use_regex=False)
    letters = sorted(ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    known = set(letters)

    def add(pieces: Iterable[str]) -> None:
        left, *rest = pieces
        for right in rest:
            if left + right not in known:
                known.add(left + right)
                merges.append((left, right))
            left += right

    for pair in _english_merges():
        add(pair)
    for character in characters:
        add(to_byte_letters.pre_tokenize_str(character)[0][0])
    # Merge each frame from the pieces into which the earlier merges turn it, so that encoding arrives at it.
    for word in (to_byte_letters.pre_tokenize_str(frame)[0][0] for frame in frames):
        model = models.BPE({piece: i for i, piece in enumerate([*letters, *(a + b for a, b in merges)])}, list(merges))
        add(token.value for token in model.tokenize(word))
    vocabulary = {piece: i for i, piece in enumerate([*letters, *(left + right for left, right in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("|".join([*map(re.escape, frames), _SPLIT])), "isolated"), to_byte_letters]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT, START, END])
    tokenizer.add_tokens([AddedToken(prompt, normalized=False) for prompt in prompts])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, *, context: int, chat_template: str | None = CHAT_TEMPLATE) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END_OF_TEXT,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if chat_template is not None:
        settings["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _english_merges() -> list[tuple[str, str]]:
    """Byte-pair merges of common English words, lower case."""
    import wordfreq
    from tokenizers import trainers

    shares = wordfreq.get_frequency_dict("en", wordlist="best")
    common = [word for word in shares if re.fullmatch("[a-z]+", word)][:40_000]
    weighted = [word for word in common for _ in range(max(1, int((shares[word] * 1e6) ** 0.5)))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(weighted, trainers.BpeTrainer(vocab_size=26 + ENGLISH_PIECES, show_progress=False))
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def characters() -> tuple[str, ...]:
    """Han characters and the punctuation of Chinese text."""
    return (*lexicon.characters(), *"，。？！、：；“”‘’（）《》…—‹›")
