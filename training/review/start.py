"""The initial weights for training: similar sounds have similar embeddings, and attention heads can look up and copy.

A small network needs some thousand steps to learn to continue a word that it has seen before (an induction head,
arXiv:2209.11895), but here nearly every token of an answer is a copy. The circuit is therefore written into the initial
weights. A head of layer 0 notes at every position the sound of the token before it. Heads of layer 1 look for positions
where the token before sounded like the current one, and copy the token at that position. If 40 random characters are
written twice, the untrained network predicts 96% of them correctly the second time. Training starts from there and
changes all weights.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from training import lexicon, voices
from training.qwen3 import Qwen3

EMBEDDING_SCALE: Final = 0.08
"""Large enough that a copied token wins over all others from the start."""
CONSTANT: Final = 0.5
"""The share of one direction common to all embeddings: the query of the head that finds the position before."""
OWN, TONE, VOWEL = 0.9, 0.4, 0.5
"""Shares in an embedding of the token's own direction, its tone and a vowel. An initial, a final or a consonant has
share 1."""
SHARPNESS: Final = 2.0
NOTE_SCALE, COPY_SCALE, OUTPUT_SCALE = 1.2 * EMBEDDING_SCALE, 0.4, 0.05
NEAR_PAIRS, FAR_PAIRS = 4, 14
"""Numbers of rotary pairs: those that turn fast enough to tell a position from the next, and those that hardly turn
within a request."""


def prepare(model: Qwen3, tokenizer: Tokenizer, *, seed: int = 5) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.layers:
            attention = layer.self_attn
            width = attention.v_proj.weight.shape[1]
            for projection in (
                attention.q_proj,
                attention.k_proj,
                attention.v_proj,
                layer.mlp.gate_proj,
                layer.mlp.up_proj,
            ):
                projection.weight.normal_(std=width**-0.5, generator=generator)
            for projection in (attention.o_proj, layer.mlp.down_proj):
                projection.weight.normal_(std=OUTPUT_SCALE * projection.weight.shape[1] ** -0.5, generator=generator)
        head = model.layers[0].self_attn.head
        used = width - head  # the last dimensions are for the notes about the token before
        basis, _ = torch.linalg.qr(torch.randn(used, used, generator=generator))
        constant, sounds = basis[:, 0] * used**0.5, basis[:, 1 : head + 1].T
        _embed(model.embed_tokens.weight, tokenizer, constant, generator)
        _note_the_token_before(model.layers[0].self_attn, constant, sounds, model.cos, model.sin)
        _look_up_and_copy(model.layers[1].self_attn, sounds, basis)


def _note_the_token_before(attention: nn.Module, constant: Tensor, sounds: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Set up head 0. Query and key are constant, and the key is rotated by one position, so they match if the key is
    exactly one position earlier."""
    head, half, used = attention.head, attention.head // 2, len(constant)
    asked = constant / used
    query, key = torch.zeros(head, len(attention.q_proj.weight[0])), torch.zeros(head, len(attention.q_proj.weight[0]))
    for pair in range(NEAR_PAIRS):
        query[pair, :used] = asked
        key[pair, :used] = cos[1, pair] * asked
        key[pair + half, :used] = sin[1, pair] * asked
    attention.q_proj.weight[:head], attention.k_proj.weight[:head] = query, key
    attention.v_proj.weight[:head].zero_()
    attention.v_proj.weight[:head, :used] = sounds
    attention.o_proj.weight[:, :head].zero_()
    attention.o_proj.weight[used:, :head] = NOTE_SCALE * torch.eye(head)
    attention.q_norm.weight.fill_(SHARPNESS)
    attention.k_norm.weight.fill_(SHARPNESS)


def _look_up_and_copy(attention: nn.Module, sounds: Tensor, basis: Tensor) -> None:
    """Set up all heads but the last. The query is the current token's sound, the keys are the notes, and each head
    copies a part of the embedding."""
    head, half, used = attention.head, attention.head // 2, len(basis)
    kept = torch.zeros(head, 1)
    kept[half - FAR_PAIRS : half] = kept[-FAR_PAIRS:] = 1.0
    for first in range(0, used, head):
        rows = slice(first, first + head)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight[rows].zero_()
        attention.q_proj.weight[rows, :used] = kept * sounds
        attention.k_proj.weight[rows, used:] = kept * torch.eye(head)
        attention.v_proj.weight[rows, :used] = basis[:, rows].T
        attention.o_proj.weight[:, rows].zero_()
        attention.o_proj.weight[:used, rows] = COPY_SCALE * basis[:, rows]
    attention.q_norm.weight.fill_(SHARPNESS)
    attention.k_norm.weight.fill_(SHARPNESS)


def _embed(weight: Tensor, tokenizer: Tokenizer, constant: Tensor, generator: torch.Generator) -> None:
    used = len(constant)

    @cache
    def direction(_part: str) -> Tensor:
        return torch.randn(used, generator=generator)

    sounds = torch.randn(len(weight), used, generator=generator)
    for piece, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if re.fullmatch("[A-Za-z]{1,12}", piece):
            _add(
                sounds[i],
                [(VOWEL if letter in "aeiouy" else 1.0, direction(_heard(letter))) for letter in piece.lower()],
            )
    for character in lexicon.characters():
        initial, final, tone = syllable_parts(voices.pinyin(character))
        [i] = tokenizer.encode(character, add_special_tokens=False).ids
        _add(sounds[i], [(1.0, direction("i" + initial)), (1.0, direction("f" + final)), (TONE, direction("t" + tone))])
    weight.zero_()
    weight[:, :used] = EMBEDDING_SCALE * (sounds + CONSTANT * constant) / (1 + CONSTANT**2) ** 0.5


def _add(row: Tensor, parts: list[tuple[float, Tensor]]) -> None:
    """Add the sounds to `row`, which is the token's own direction, and scale the sum to unit variance."""
    variance = OWN**2 + sum(share**2 for share, _ in parts)
    row.mul_(OWN)
    for share, part in parts:
        row.add_(share * part)
    row.div_(variance**0.5)


def _heard(letter: str) -> str:
    """The letter whose direction `letter` uses: letters that sound alike share one."""
    return {"c": "k", "q": "k", "z": "s", "y": "i", "j": "g"}.get(letter, letter)


def syllable_parts(syllable: str) -> tuple[str, str, str]:
    """The initial, final and tone of a pinyin syllable: zhong1 has zh, ong and 1. Without a digit the tone is 5."""
    letters = syllable.rstrip("12345")
    tone = syllable[len(letters) :] or "5"
    initial = next((start for start in ("zh", "ch", "sh") if letters.startswith(start)), letters[:1])
    if initial in tuple("aoe"):
        initial = ""
    return initial, letters[len(initial) :], tone
