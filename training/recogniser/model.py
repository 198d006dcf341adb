"""The network: SenseVoice's inputs and outputs with small blocks of convolution and self-attention.

As in SenseVoice (FunAudioLLM, arXiv:2407.04051), four query frames precede the audio: one for the language, two for
emotion and event, one for the text form. The outputs at these frames are the marks; the outputs after them are CTC
(Graves et al., 2006) over tokens.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LANGUAGES: Final = {"auto": 0, "zh": 3, "en": 4, "yue": 7, "ja": 11, "ko": 12, "nospeech": 13}
WITH_ITN, WITHOUT_ITN = 14, 15
QUERIES: Final = 4
WINDOW, SHIFT = 7, 6
"""Low frame rate: every 60 ms one frame that joins 7 frames of 10 ms."""


class Block(nn.Module):
    """Optional self-attention, then a feed-forward layer that contains a depthwise convolution over 7 frames."""

    def __init__(self, width: int, *, attends: bool, heads: int = 4, kernel: int = 7, multiple: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.attends = attends
        if attends:
            self.attention_norm = nn.LayerNorm(width)
            self.query_key_value = nn.Linear(width, 3 * width)
            self.attention_out = nn.Linear(width, width)
        self.near = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, multiple * width)
        self.down = nn.Linear(multiple * width, width)

    def forward(self, x: Tensor, keep: Tensor, mask: Tensor) -> Tensor:
        """x: (batch, time, width). keep: (batch, time, 1), 0 or 1. mask: (batch, 1, 1, time), 0 or very negative."""
        if self.attends:
            batch, time, width = x.shape
            parts = self.query_key_value(self.attention_norm(x)).reshape(
                batch, time, 3, self.heads, width // self.heads
            )
            query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
            scores = (query @ key.transpose(-1, -2)).float() / math.sqrt(width // self.heads)
            weights = torch.softmax(scores + mask, -1).to(value.dtype)
            x = x + self.attention_out((weights @ value).transpose(1, 2).reshape(batch, time, width))
        near = self.near((x * keep).transpose(1, 2)).transpose(1, 2)
        return x + self.down(F.gelu(self.up(self.norm(near))))


class Recogniser(nn.Module):
    """Maps features (batch, time, 560), their lengths, the language (`LANGUAGES`) and the text form (`WITH_ITN` or
    `WITHOUT_ITN`) to logits (batch, 4 + time, tokens)."""

    def __init__(
        self, tokens: int, sounds: int, *, width: int = 256, layers: int = 10, attend_at: tuple[int, ...] = (3, 5, 7, 9)
    ) -> None:
        super().__init__()
        self.queries = nn.Embedding(16, width)
        self.input = nn.Linear(80 * WINDOW, width)
        self.input_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, attends=i in attend_at) for i in range(layers))
        self.output_norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, tokens)
        self.middle = layers // 2
        # No learned gains: while CTC predicts only blanks, they would shrink to zero and stay there.
        self.middle_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.middle_output = nn.Linear(width, sounds)
        self.feedback = nn.Linear(sounds, width)
        nn.init.normal_(self.queries.weight, std=0.5)

    def forward(self, x: Tensor, x_length: Tensor, language: Tensor, text_norm: Tensor) -> Tensor:
        return self.output(self.output_norm(self.hidden(x, x_length, language, text_norm)[0]))

    def hidden(self, x: Tensor, x_length: Tensor, language: Tensor, text_norm: Tensor) -> tuple[Tensor, Tensor]:
        """The last block's output, and the middle block's logits over sounds. The upper blocks see these logits too
        (self-conditioned CTC, arXiv:2104.02724)."""
        batch = x.shape[0]
        between = self.queries(torch.tensor([[1, 2]])).expand(batch, 2, -1)
        first, last = self.queries(language.long()).unsqueeze(1), self.queries(text_norm.long()).unsqueeze(1)
        hidden = torch.cat([first, between, last, self.input_norm(self.input(x))], 1)
        position = torch.arange(hidden.shape[1]).unsqueeze(0)
        keep = (position < (x_length.long() + QUERIES).unsqueeze(1)).to(hidden.dtype).unsqueeze(-1)
        mask = (keep.squeeze(-1)[:, None, None, :].float() - 1) * 1e4
        for block in self.blocks[: self.middle]:
            hidden = block(hidden, keep, mask)
        sounds = self.middle_output(self.middle_norm(hidden))
        hidden = hidden + self.feedback(torch.softmax(sounds.float(), -1).to(hidden.dtype))
        for block in self.blocks[self.middle :]:
            hidden = block(hidden, keep, mask)
        return hidden, sounds
