"""Embeddings: inputs of similar length run together, one batch a step."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from duet.errors import ContextTooLong, InvalidRequest
from engine.types import Embedded, EmbeddingRequest
from engine.worker.model import Loaded
from engine.worker.scheduler.jobs import Job

_BATCH_INPUTS = 32
_BATCH_TOKENS = 2048
"""Padded tokens of one step: bounds its memory and how long a stream beside it waits."""


def start_embedding(loaded: Loaded, request: EmbeddingRequest) -> Job[Embedded]:
    """Tokenise and check all inputs. Raises `InvalidRequest` naming `input` or `dimensions`."""
    inputs = [_tokens(loaded, item, i) for i, item in enumerate(request.inputs)]
    return _EmbeddingJob(loaded, request, inputs)


def _tokens(loaded: Loaded, item: str | tuple[int, ...], position: int) -> list[int]:
    where = f"input[{position}]"
    tokens = loaded.tokenizer.encode(item) if isinstance(item, str) else list(item)
    if not item or not tokens:  # an empty text still has the special tokens that the tokenizer adds
        raise InvalidRequest(f"{where} is empty", param="input")
    if any(not 0 <= token < loaded.vocabulary for token in tokens):
        raise InvalidRequest(f"{where} has a token outside the vocabulary of {loaded.vocabulary}", param="input")
    if loaded.context is not None and len(tokens) > loaded.context:
        raise ContextTooLong(f"{where} has {len(tokens)} tokens; this model takes {loaded.context}", param="input")
    return tokens


class _EmbeddingJob:
    def __init__(self, loaded: Loaded, request: EmbeddingRequest, inputs: list[list[int]]) -> None:
        self.id, self.priority, self.tenant = request.id, request.priority, request.tenant
        self._model, self._dimensions, self._inputs = loaded.model, request.dimensions, inputs
        self._pad = loaded.tokenizer.pad_token_id or 0
        # Longest first: if the first batch fits in memory, all others do.
        self._order = sorted(range(len(inputs)), key=lambda i: -len(inputs[i]))
        self._vectors: dict[int, np.ndarray[Any, np.dtype[np.float32]]] = {}

    def step(self) -> Embedded | None:
        batch = self._next_batch()
        vectors = self._run([self._inputs[i] for i in batch])
        if self._dimensions is not None and self._dimensions > vectors.shape[1]:
            raise InvalidRequest(f"this model's vectors have {vectors.shape[1]} dimensions", param="dimensions")
        self._vectors.update(zip(batch, vectors, strict=True))
        return None if self._order else self._result()

    def _next_batch(self) -> list[int]:
        length = len(self._inputs[self._order[0]])
        count = max(1, min(_BATCH_INPUTS, _BATCH_TOKENS // length))
        batch, self._order = self._order[:count], self._order[count:]
        return batch

    def _run(self, inputs: list[list[int]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Vectors [B, D] of token lists, padded on the right."""
        length = max(len(tokens) for tokens in inputs)
        ids = mx.array([tokens + [self._pad] * (length - len(tokens)) for tokens in inputs])
        mask = mx.array([[1] * len(tokens) + [0] * (length - len(tokens)) for tokens in inputs])
        vectors = self._model(ids, attention_mask=mask).text_embeds.astype(mx.float32)
        return np.array(vectors)

    def _result(self) -> Embedded:
        vectors = np.stack([self._vectors[i] for i in range(len(self._inputs))])
        vectors = vectors[:, : self._dimensions]
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        tokens = sum(len(tokens) for tokens in self._inputs)
        return Embedded(self.id, vectors.astype("<f4").tobytes(), vectors.shape[1], tokens)
