"""Qwen3's architecture in plain torch, with Hugging Face's weight names, for training the embedded models on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


KeysValues = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-6)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (arXiv:2104.09864), halves layout."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Attention(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, self.head = config["hidden_size"], config["head_dim"]
        self.heads = config["num_attention_heads"]
        inner = self.heads * self.head
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(inner, width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(self.head), RMSNorm(self.head)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, before: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """`before` are keys and values [1, heads, P, head] of text that stands before every row."""
        batch, length, _ = x.shape
        shape = (batch, length, self.heads, self.head)
        q = rotated(self.q_norm(self.q_proj(x).view(shape)).transpose(1, 2), cos, sin)
        k = rotated(self.k_norm(self.k_proj(x).view(shape)).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        if before is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            earlier = before[0].shape[2]
            keys, values = (torch.cat([old.expand(batch, -1, -1, -1), new], 2) for old, new in zip(before, (k, v), strict=True))
            seen = torch.ones(length, earlier + length, dtype=torch.bool).tril(earlier)
            mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1)), (k, v)


class MLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.self_attn, self.mlp = Attention(config), MLP(width, config["intermediate_size"])
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(width), RMSNorm(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, before: KeysValues | None) -> tuple[Tensor, KeysValues]:
        mixed, made = self.self_attn(self.input_layernorm(x), cos, sin, before)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), made


class Qwen3(nn.Module):
    """Token ids [B, T] to hidden states [B, T, H]. Right padding needs no mask: attention is causal.

    Logits are hidden states times the embedding, which is tied."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = RMSNorm(config["hidden_size"])
        inverse = config["rope_theta"] ** (-torch.arange(0, config["head_dim"], 2).float() / config["head_dim"])
        angles = torch.outer(torch.arange(config["max_position_embeddings"]).float(), inverse)
        angles = torch.cat([angles, angles], -1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        nn.init.normal_(self.embed_tokens.weight, std=0.05)

    def forward(self, ids: Tensor, shared: Tensor | None = None) -> Tensor:
        """`shared` are ids [P] of a beginning that all rows have in common: it is run once, not B times."""
        x = self.embed_tokens(ids)
        earlier = 0 if shared is None else len(shared)
        head = None if shared is None else self.embed_tokens(shared[None])
        here = slice(earlier, earlier + ids.shape[1])
        for layer in self.layers:
            made = None
            if head is not None:
                head, made = layer(head, self.cos[:earlier], self.sin[:earlier], None)
            x, _ = layer(x, self.cos[here], self.sin[here], made)
        return self.norm(x)
