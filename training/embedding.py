"""Train `duet-tiny-embed`: a text embedding for Chinese and English, a Qwen3 with its own tokenizer.

    python -m training.embedding --out models/embedded/duet-tiny-embed

The loss is contrastive (InfoNCE, arXiv:1807.03748) over batches of pairs with the same meaning (`meanings`): every
other text of the batch is a wrong answer. A text's vector is the mean of its last hidden states. The first stage trains
the tokens' own vectors while the layers add nothing (a bag of words, which is fast). With `--steps` a second stage
trains everything. The shipped model has the first stage alone, so the order of words makes no difference. Training is
seeded, and an interrupted run continues from its last checkpoint. It takes 75 s of one core.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F

from training import frames, lexicon, steps
from training.meanings import Meanings
from training.qwen3 import Qwen3

WORK: Final = Path("build/train/embedding")
HAN_CHARACTERS, CHINESE_WORDS, ENGLISH_WORDS, ENGLISH_PIECES = 3_600, 1_700, 4_600, 450
ENDINGS: Final = ("s", "es", "d", "ed", "ing", "er", "ly")
ENDING_SCORE, PIECE_SCORE, LETTER_SCORE = -6.0, -13.0, -16.0
"""Log-probabilities of endings, pieces and letters. They are low, so a word is split only if it must be."""
UNKNOWN, PAD = "<unk>", "<pad>"
PUNCTUATION: Final = "0123456789.,?!:;'\"()[]{}<>/\\|@#$%^&*-_+=~`。、《》“”‘’…—·"
MAX_TOKENS: Final = 32
"""Tokens of a text in training; the rest is cut off."""
WORD_PAIRS, SENTENCE_PAIRS = 1024, 384
"""Pairs in one step of the first and of the second stage."""
TEMPERATURE: Final = 0.05


def make_tokenizer() -> Tokenizer:
    """A unigram tokenizer (arXiv:1804.10959) that splits words of one script into the likeliest pieces.

    It ignores case, width and spaces. English endings are pieces of their own, so that `servers` contains `server`.
    """
    scores: dict[str, float] = dict.fromkeys((*PUNCTUATION, *"abcdefghijklmnopqrstuvwxyz"), LETTER_SCORE)
    shares = lexicon.chinese_frequencies()
    common = sorted(lexicon.characters(), key=lambda c: -lexicon.character_shares()[c])[:HAN_CHARACTERS]
    scores |= dict.fromkeys(common, LETTER_SCORE)
    words = sorted(
        (word for word in shares if len(word) > 1 and set(word) <= set(common)), key=lambda w: (-shares[w], w)
    )
    scores |= {word: math.log(shares[word]) for word in words[:CHINESE_WORDS]}
    scores |= dict.fromkeys(_frequent_pieces(), PIECE_SCORE)
    scores |= _english_words()
    scores |= dict.fromkeys(ENDINGS, ENDING_SCORE)
    tokenizer = Tokenizer(models.Unigram([(PAD, 0.0), (UNKNOWN, 0.0), *scores.items()], unk_id=1))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    split = Regex(r"[a-z]+|[\u4e00-\u9fff]+|[^\s]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(split, "removed", invert=True)
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([PAD, UNKNOWN])
    return tokenizer


def _english_words() -> dict[str, float]:
    """Log frequencies of the most common English words and of words of work. A word that is another one with an ending
    is left out."""
    import wordfreq

    work = " ".join((*frames.WORK_ENGLISH_NOUNS, *frames.WORK_ENGLISH_VERBS, *frames.WORK_ENGLISH_ADJECTIVES)).lower()
    chosen = dict.fromkeys(re.findall("[a-z]{3,}", work))
    common = sorted(lexicon.english_words().items, key=lambda w: (-wordfreq.word_frequency(w, "en"), w))
    for word in common:
        if len(chosen) == ENGLISH_WORDS:
            break
        stems = {word[: -len(ending)] for ending in ENDINGS if word.endswith(ending) and len(word) > len(ending) + 2}
        if not (stems | {stem + "e" for stem in stems}) & chosen.keys():
            chosen[word] = None
    return {word: math.log(max(wordfreq.word_frequency(word, "en"), 1e-6)) for word in chosen}


def _frequent_pieces() -> list[str]:
    """The pieces of the first byte-pair merges of English words. They spell words that are not in the list."""
    words = lexicon.english_words(0.5)
    rng = random.Random("pieces")
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=27 + ENGLISH_PIECES, show_progress=False)
    tokenizer.train_from_iterator((words.draw(rng.random()) for _ in range(100_000)), trainer)
    return [piece for piece in sorted(tokenizer.get_vocab()) if len(piece) > 1]


def configuration(vocabulary: int) -> dict[str, object]:
    return {
        "architectures": ["Qwen3Model"], "model_type": "qwen3", "vocab_size": vocabulary, "hidden_size": 128,
        "num_hidden_layers": 2, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": True,
        "hidden_act": "silu", "attention_bias": False,
    }  # fmt: skip


def token_rows(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids[:MAX_TOKENS] or [0] for encoding in tokenizer.encode_batch(texts)]


def embed(model: Qwen3, rows: list[list[int]], parts: int = 4) -> Tensor:
    """Unit vectors [B, H]. The rows are embedded in `parts` batches of similar length, to reduce padding."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    size = -(-len(order) // parts)
    vectors = torch.cat([_embed([rows[i] for i in order[at : at + size]], model) for at in range(0, len(order), size)])
    return vectors[torch.tensor(order).argsort()]


def _embed(rows: list[list[int]], model: Qwen3) -> Tensor:
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1.0] * len(row) + [0.0] * (length - len(row)) for row in rows])
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(ids)
    return F.normalize((hidden.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)


def embed_words(model: Qwen3, rows: list[list[int]]) -> Tensor:
    """The mean of the tokens' own vectors: the same as `embed` while the layers add nothing, but much faster."""
    table = model.norm(model.embed_tokens.weight)
    offsets = torch.tensor([0, *accumulate(map(len, rows[:-1]))])
    tokens = torch.tensor([token for row in rows for token in row])
    return F.normalize(F.embedding_bag(tokens, table, offsets, mode="mean"), dim=-1)


def punctuated(text: str, rng: random.Random) -> str:
    return text + (rng.choice("。.?！") if rng.random() < 0.3 else "")


def train(
    model: Qwen3, tokenizer: Tokenizer, embed_rows: Callable[[Qwen3, list[list[int]]], Tensor], *, salt: int, pairs: int,
    **schedule: Any,
) -> None:  # fmt: skip
    """Train one stage with `pairs` pairs per step, drawn from step and `salt`. `schedule` goes to `steps.train`."""
    right: list[float] = []

    def loss_of_step(step: int) -> Tensor:
        rng = random.Random(steps.seed_of_step(step, salt))
        drawn = Meanings(rng).batch(pairs)
        texts = [punctuated(text, rng) for side in zip(*drawn, strict=True) for text in side]
        vectors = embed_rows(model, token_rows(tokenizer, texts))
        scores = vectors[: len(drawn)] @ vectors[len(drawn) :].T / TEMPERATURE
        labels = torch.arange(len(drawn))
        right.append((scores.argmax(1) == labels).float().mean().item())
        return (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2

    def report(_: int) -> str:
        line = f"nearest text is the right one: {sum(right) / len(right):.3f}"
        right.clear()
        return line

    steps.train(model, loss_of_step, on_report=report, every=50, warm_up=50, **schedule)


def silence_layers(model: Qwen3) -> None:
    """Make every layer add nothing until it is trained."""
    for layer in model.layers:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)


def save(model: Qwen3, tokenizer: Tokenizer, settings: dict[str, object], out: Path) -> None:
    (out / "1_Pooling").mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    (out / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}\n', encoding="utf-8")
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "model_max_length": settings["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=WORK, help="folder for checkpoints")
    parser.add_argument("--word-steps", type=int, default=300, help="steps that train the tokens' own vectors alone")
    parser.add_argument("--steps", type=int, default=0, help="steps after them that train everything")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(7)
    began = time.monotonic()
    tokenizer = make_tokenizer()
    settings = configuration(tokenizer.get_vocab_size())
    model = Qwen3(settings)
    print(f"{tokenizer.get_vocab_size()} tokens, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    silence_layers(model)
    train(
        model, tokenizer, embed_words, salt=1, pairs=WORD_PAIRS, steps=options.word_steps, checkpoint=options.work / "words.pt",
        peak_rate=1e-2,
    )  # fmt: skip
    train(
        model, tokenizer, embed, salt=2, pairs=SENTENCE_PAIRS, steps=options.steps, checkpoint=options.work / "sentences.pt",
        peak_rate=1.5e-3,
    )  # fmt: skip
    save(model, tokenizer, settings, options.out)
    megabytes = sum(f.stat().st_size for f in options.out.rglob("*") if f.is_file()) / 1e6
    print(f"{options.out}: {megabytes:.2f} MB, {(time.monotonic() - began) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
