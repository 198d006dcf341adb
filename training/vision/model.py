"""A small Qwen3-VL in plain torch: a vision tower without deepstack, and Qwen3 layers with three-axis rotary positions.

It computes the same as mlx-vlm's `qwen3_vl` (`parity.py` measures it) and has Hugging Face's weight names. It takes
still images only: the patch embedding has one frame here. On export this frame becomes two equal ones with half of the
weight each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.qwen3 import Layer, RMSNorm, attention, rotated
from training.vision.rendering import CELL, MERGE, PATCH

TOWARDS: Final = ((-1, 0), (1, 0), (0, -1), (0, 1))
NEARNESS: Final = 2.5
Grid = tuple[int, int]
"""Rows and columns of patches."""


@dataclass(frozen=True)
class Places:
    """The position of each patch, in the processor's order: `row` and `column` [P], rotary `cos` and `sin` [P, head]."""

    row: Tensor
    column: Tensor
    cos: Tensor
    sin: Tensor


@cache
def places(grid: Grid, head: int) -> Places:
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")

    def by_cells(values: Tensor) -> Tensor:
        cells = values.view(grid[0] // MERGE, MERGE, grid[1] // MERGE, MERGE)
        return cells.transpose(1, 2).reshape(-1)

    row, column = by_cells(rows), by_cells(columns)
    inverse = 10000.0 ** (-torch.arange(0, head // 2, 2).float() / (head // 2))
    angles = torch.cat([row[:, None] * inverse, column[:, None] * inverse], -1)
    angles = torch.cat([angles, angles], -1)
    return Places(row, column, angles.cos(), angles.sin())


class VisionAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self._look_near()

    @torch.no_grad()
    def _look_near(self) -> None:
        """Initialise attention like a convolution: each head attends to one neighbour (as in ConViT, arXiv:2103.10697).

        With a constant query and key, the rotary embedding scores a pair of patches by their offset alone. The score is
        highest for the offset `towards`.
        """
        biases = self.qkv.bias.view(3, self.heads, -1)
        biases[:2] = 0
        half = biases.shape[2] // 2
        frequency = 10000.0 ** (-torch.arange(0, half, 2).float() / half)
        strength = NEARNESS * frequency**0.25 * (frequency > 0.05)
        for head in range(self.heads):
            towards = TOWARDS[head % len(TOWARDS)]
            turn = torch.cat([frequency * steps for steps in towards])
            biases[0, head] = torch.cat([turn.cos(), turn.sin()]) * strength.repeat(4)
            biases[1, head, :half] = strength.repeat(2)

    def forward(self, x: Tensor, where: Places) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        cos, sin = where.cos.to(q.dtype), where.sin.to(q.dtype)
        mixed = attention(rotated(q, cos, sin), rotated(k, cos, sin), v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class VisionMLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.linear_fc1, self.linear_fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(F.gelu(self.linear_fc1(x), approximate="tanh"))


class VisionBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = VisionAttention(width, heads), VisionMLP(width, inner)

    def forward(self, x: Tensor, where: Places) -> Tensor:
        x = x + self.attn(self.norm1(x), where)
        return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
    """Turns MERGE x MERGE patches into one token of the text model."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear_fc1 = nn.Linear(width * MERGE**2, width * MERGE**2)
        self.linear_fc2 = nn.Linear(width * MERGE**2, out)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        return self.linear_fc2(F.gelu(self.linear_fc1(self.norm(x).view(batch, length // MERGE**2, -1))))


class Vision(nn.Module):
    """Maps patches [B, P, 3 * PATCH * PATCH] of one grid to features [B, P, width]. `merger` makes tokens of them."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.head = width // config["num_heads"]
        self.side = int(config["num_position_embeddings"] ** 0.5)
        self.patch_embed = nn.Linear(3 * PATCH * PATCH, width)
        self.pos_embed = nn.Embedding(config["num_position_embeddings"], width)
        self.blocks = nn.ModuleList(
            VisionBlock(width, config["num_heads"], config["intermediate_size"]) for _ in range(config["depth"])
        )
        self.merger = Merger(width, config["out_hidden_size"])
        nn.init.normal_(self.pos_embed.weight, std=0.1)

    def forward(self, patches: Tensor, grid: Grid) -> Tensor:
        where = places(grid, self.head)
        x = self.patch_embed(patches) + self._positions(grid, where)
        for block in self.blocks:
            x = block(x, where)
        return x

    def _positions(self, grid: Grid, where: Places) -> Tensor:
        """The table of `side` x `side` embeddings, interpolated bilinearly to the size of the image."""
        steps = [torch.linspace(0, self.side - 1, size) for size in grid]
        row, column = steps[0][where.row], steps[1][where.column]
        table = self.pos_embed.weight.view(self.side, self.side, -1)
        top, left = row.long(), column.long()
        below, right = (top + 1).clamp(max=self.side - 1), (left + 1).clamp(max=self.side - 1)
        down, across = (row - top)[:, None], (column - left)[:, None]
        upper = table[top, left] * (1 - across) + table[top, right] * across
        lower = table[below, left] * (1 - across) + table[below, right] * across
        return upper * (1 - down) + lower * down


class Text(nn.Module):
    """Maps embeddings [B, T, H] and positions [3, B, T] to hidden states [B, T, H]."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = RMSNorm(config["hidden_size"])
        half = config["head_dim"] // 2
        inverse = config["rope_theta"] ** (-torch.arange(0, config["head_dim"], 2).float() / config["head_dim"])
        self.register_buffer("inverse", inverse, persistent=False)
        axis = torch.zeros(half, dtype=torch.long)
        for which in (1, 2):
            axis[which : config["rope_scaling"]["mrope_section"][which] * 3 : 3] = which
        self.register_buffer("axis", axis, persistent=False)
        nn.init.normal_(self.embed_tokens.weight, std=0.05)

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [B, 1, T, head]. Each frequency belongs to one of the three axes, interleaved as in Qwen3-VL."""
        angles = positions[self.axis].permute(1, 2, 0).float() * self.inverse
        angles = torch.cat([angles, angles], -1)[:, None]
        return angles.cos(), angles.sin()

    def forward(self, x: Tensor, positions: Tensor, attended: list[Tensor] | None = None) -> Tensor:
        """`attended` collects each layer's normalised input, with which training guides the attention."""
        cos, sin = self.rotation(positions)
        for layer in self.layers:
            if attended is not None:
                attended.append(layer.input_layernorm(x))
            x = layer(x, cos, sin)
        return self.norm(x)


class Qwen3VL(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.visual, self.language_model = Vision(config["vision_config"]), Text(config["text_config"])
        self.image_token = config["image_token_id"]

    def embed(self, ids: Tensor, features: list[Tensor]) -> Tensor:
        """Token embeddings [B, T, H] in which image features, [B, tokens, H] for each image, replace the image tokens."""
        x = self.language_model.embed_tokens(ids)
        if not features:
            return x
        seen = torch.cat(features, 1)
        return x.masked_scatter((ids == self.image_token)[..., None], seen.to(x.dtype))

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.language_model.embed_tokens.weight.T.to(hidden.dtype)


def positions(ids: list[int], grids: list[Grid], image_token: int) -> list[list[int]]:
    """M-RoPE positions (time, height, width), [3][T], of one row (arXiv:2409.12191). The tokens of an image share one
    time. The text after an image starts after its largest position."""
    found: list[list[int]] = [[], [], []]
    left, after, i = list(grids), 0, 0
    while i < len(ids):
        if ids[i] != image_token:
            for axis in found:
                axis.append(after)
            after, i = after + 1, i + 1
            continue
        rows, columns = (size // MERGE for size in left.pop(0))
        found[0] += [after] * (rows * columns)
        found[1] += [after + row for row in range(rows) for _ in range(columns)]
        found[2] += [after + column for _ in range(rows) for column in range(columns)]
        after, i = after + max(rows, columns), i + rows * columns
    return found


def configuration(special: dict[str, int], vocabulary: int) -> dict[str, Any]:
    """The content of `config.json`."""
    text = {
        "model_type": "qwen3_vl_text", "vocab_size": vocabulary, "hidden_size": 128, "num_hidden_layers": 4,
        "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "max_position_embeddings": 2048, "tie_word_embeddings": True, "hidden_act": "silu",
        "attention_bias": False,
        "rope_scaling": {"type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True},
    }  # fmt: skip
    vision = {
        "model_type": "qwen3_vl", "depth": 4, "hidden_size": 128, "intermediate_size": 384, "out_hidden_size": 128,
        "num_heads": 4, "patch_size": PATCH, "spatial_patch_size": PATCH, "spatial_merge_size": CELL // PATCH,
        "temporal_patch_size": 2, "in_channels": 3, "in_chans": 3, "num_position_embeddings": 64,
        "hidden_act": "gelu_pytorch_tanh", "deepstack_visual_indexes": [],
    }  # fmt: skip
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "torch_dtype": "float16",
        "vocab_size": vocabulary, "tie_word_embeddings": True, "eos_token_id": special["<|im_end|>"],
        "vision_start_token_id": special["<|vision_start|>"], "vision_end_token_id": special["<|vision_end|>"],
        "vision_token_id": special["<|vision_pad|>"], "image_token_id": special["<|image_pad|>"],
        "video_token_id": special["<|video_pad|>"], "text_config": text, "vision_config": vision,
    }  # fmt: skip
