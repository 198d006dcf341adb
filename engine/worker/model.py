"""What every package of a worker may know of its model. No MLX: arrays and libraries are behind `Any`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Loaded:
    """A model ready to run.

    `context` is the longest prompt plus answer (or the longest input) in tokens; None if it is unknown. `eos_ids` end an answer.
    `image_token_id` marks an image's place in a prompt.
    """

    capabilities: tuple[str, ...]
    model: Any
    processor: Any
    tokenizer: Any
    config: dict[str, Any]
    context: int | None
    weight_bytes: int
    vocabulary: int
    eos_ids: frozenset[int]
    image_token_id: int | None
