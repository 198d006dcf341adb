"""Embeddings: inputs of similar length run together, one batch a step."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from duet.errors import ContextTooLong, InvalidRequest
from engine.types import Embedded, EmbeddingRequest
from engine.worker.model import Loaded
from engine.worker.prompts.length import tokens_beyond
from engine.worker.scheduler.jobs import Job

_BATCH_INPUTS = 32
_BATCH_TOKENS = 2048
"""Padded tokens of one step: bounds its memory and how long a stream beside it waits."""
_STEP_CHARACTERS = 1 << 15
"""Of the texts that one step tokenises, or a little more: a tenth of a second at most."""


def start_embedding(loaded: Loaded, request: EmbeddingRequest) -> Job[Embedded]:
    """Begins to tokenise and check the inputs. This and the job's steps raise `InvalidRequest` naming `input` or `dimensions`."""
    job = _EmbeddingJob(loaded, request)
    job.read()
    return job


def _tokens(loaded: Loaded, item: str | tuple[int, ...], position: int) -> list[int]:
    where = f"input[{position}]"
    limit = loaded.context
    beyond = isinstance(item, str) and limit and tokens_beyond(loaded.tokenizer.backend_tokenizer, item, limit)
    if beyond:
        raise ContextTooLong(f"{where} has {beyond} tokens or more; this model takes {limit}", param="input")
    tokens = loaded.tokenizer.encode(item) if isinstance(item, str) else list(item)
    if not item or not tokens:  # an empty text still has the special tokens that the tokenizer adds
        raise InvalidRequest(f"{where} is empty", param="input")
    if any(not 0 <= token < loaded.vocabulary for token in tokens):
        raise InvalidRequest(f"{where} has a token outside the vocabulary of {loaded.vocabulary}", param="input")
    if loaded.context is not None and len(tokens) > loaded.context:
        raise ContextTooLong(f"{where} has {len(tokens)} tokens; this model takes {loaded.context}", param="input")
    return tokens


class _EmbeddingJob:
    """First steps that tokenise and check the inputs, then steps that run them."""

    def __init__(self, loaded: Loaded, request: EmbeddingRequest) -> None:
        self.id, self.priority, self.tenant = request.id, request.priority, request.tenant
        self._loaded, self._model, self._dimensions = loaded, loaded.model, request.dimensions
        self._given, self._inputs = request.inputs, list[list[int]]()
        self._pad = loaded.tokenizer.pad_token_id or 0
        self._order: list[int] = []
        self._vectors: dict[int, np.ndarray[Any, np.dtype[np.float32]]] = {}

    def step(self) -> Embedded | None:
        if len(self._inputs) < len(self._given):
            self.read()
            return None
        batch = self._next_batch()
        vectors = self._run([self._inputs[i] for i in batch])
        if self._dimensions is not None and self._dimensions > vectors.shape[1]:
            raise InvalidRequest(f"this model's vectors have {vectors.shape[1]} dimensions", param="dimensions")
        self._vectors.update(zip(batch, vectors, strict=True))
        return None if self._order else self._result()

    def read(self) -> None:
        """Tokenises some more inputs."""
        left = _STEP_CHARACTERS
        while left > 0 and (position := len(self._inputs)) < len(self._given):
            item = self._given[position]
            self._inputs.append(_tokens(self._loaded, item, position))
            left -= len(item) + 1
        if len(self._inputs) == len(self._given):
            # Longest first: if the first batch fits in memory, all others do.
            self._order = sorted(range(len(self._inputs)), key=lambda i: -len(self._inputs[i]))

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
