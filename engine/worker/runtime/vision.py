"""What the language model reads besides token ids: embeddings with images in place, positions, and deepstack features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx


@dataclass(frozen=True)
class VisionInputs:
    """Inputs of one row, L prompt tokens of width H.

    `embeds` [1, L, H]. `positions` [3, 1, L] for M-RoPE models, else None. `rope_delta` is how far text positions are ahead of
    the cache after the prompt. `visual` says for each prompt token whether it belongs to an image. `deepstack` holds
    [image tokens, H] for each early layer. `whole` are arguments that cannot be cut at a chunk's border: such a row is prefilled
    in one piece.
    """

    embeds: Any
    positions: Any = None
    rope_delta: int = 0
    visual: tuple[bool, ...] = ()
    deepstack: tuple[Any, ...] = ()
    whole: dict[str, Any] | None = None

    def chunk(self, start: int, end: int) -> dict[str, Any]:
        """Arguments of the language model for prompt tokens start..end."""
        arguments: dict[str, Any] = {"inputs_embeds": self.embeds[:, start:end]}
        if self.positions is not None:
            arguments["position_ids"] = self.positions[:, :, start:end]
        if self.deepstack and any(self.visual[start:end]):
            before, here = sum(self.visual[:start]), sum(self.visual[start:end])
            arguments["visual_pos_masks"] = mx.array([self.visual[start:end]])
            arguments["deepstack_visual_embeds"] = [layer[before : before + here] for layer in self.deepstack]
        if self.whole:
            length = end - start
            if (mask := self.whole.get("attention_mask_4d")) is not None:
                arguments["attention_mask_4d"] = mask[..., :length, :length]
            if (per_layer := self.whole.get("per_layer_inputs")) is not None:
                arguments["per_layer_inputs"] = per_layer[:, :length]
        return arguments


def uses_mrope(language_model: Any) -> bool:
    """Whether the model takes positions with three axes (time, height, width), [3, B, L]."""
    return hasattr(language_model, "get_rope_index")
