"""Executes plans on the device: the batch, and the prompt chunks of rows that have not joined yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_vlm.models.cache import make_prompt_cache

from engine.worker.runtime.batch import Batch, Drawn, Row, can_batch
from engine.worker.runtime.families.vision import uses_mrope
from engine.worker.runtime.loader import Loaded, LoadError
from engine.worker.scheduler.policy import Plan, PrefillChunk


@dataclass(frozen=True)
class StepResult:
    """Tokens that became known, and rows that failed by themselves with their cause."""

    drawn: tuple[Drawn, ...]
    failed: dict[str, Exception]


class Runner:
    """Owns every array of the running requests. One thread. Raises `LoadError` for a model it cannot step.

    `batches` says whether rows of this model can run together.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._model = loaded.model.language_model
        self._mrope = uses_mrope(self._model)
        if self._mrope:
            _check_positions(self._model, loaded.config.get("model_type"))
        self.batches = all(can_batch(layer) for layer in make_prompt_cache(self._model))
        self._batch = Batch(self._model, mrope=self._mrope)
        self._prefilling: dict[str, Row] = {}

    @property
    def busy(self) -> bool:
        return self._batch.busy

    def add(self, row: Row) -> None:
        self._prefilling[row.id] = row

    def drop(self, row_id: str) -> None:
        """Forget a row that has not joined; rows of the batch leave by the plan."""
        self._prefilling.pop(row_id, None)

    def execute(self, plan: Plan) -> StepResult:
        drawn: list[Drawn] = []
        if plan.leave:
            drawn += self._batch.read()  # a row that has drawn its last token leaves before that token was read
            self._batch.leave(plan.leave)
        stepped, failed = self._batch.step()
        drawn += stepped
        for chunk in plan.prefill:
            try:
                self._prefill(chunk)
            except Exception as error:  # noqa: BLE001 - the loop ends this row with it; its neighbours run on
                failed[chunk.id] = error
            else:
                if chunk.joins:
                    self._batch.join(self._prefilling.pop(chunk.id))
        return StepResult(tuple(drawn), failed)

    def _prefill(self, chunk: PrefillChunk) -> None:
        row = self._prefilling[chunk.id]
        if row.cache is None:
            row.cache = make_prompt_cache(self._model)
        if chunk.stop > chunk.start:
            ids = mx.array([row.prompt[chunk.start : chunk.stop]], dtype=mx.int32)
            # Logits stay lazy and are never computed.
            self._model(ids, cache=row.cache, **self._arguments(row, chunk))
            states = [layer.state for layer in row.cache]
            # Beside running rows the next step's tokens are waited for anyway, and this tick's are sent without waiting
            # for the prompt. Alone, waiting here bounds what is queued, and so how long a cancellation takes.
            if self._batch.busy:
                mx.async_eval(states)
            else:
                mx.eval(states)

    def _arguments(self, row: Row, chunk: PrefillChunk) -> dict[str, Any]:
        if row.vision is not None:
            return row.vision.chunk(chunk.start, chunk.stop)
        if self._mrope:
            positions = mx.arange(chunk.start, chunk.stop)
            return {"position_ids": mx.broadcast_to(positions, (3, 1, chunk.stop - chunk.start))}
        return {}


def _check_positions(language_model: Any, kind: str | None) -> None:
    """Raise `LoadError` unless text positions are [3, B, L], or [B, L] for all three axes."""
    try:
        positions, _ = language_model.get_rope_index(mx.array([[0, 1, 2, 3]]))
    except (TypeError, ValueError) as error:
        raise LoadError(f"{kind} computes positions in a way this engine cannot run yet") from error
    if positions.shape not in ((3, 1, 4), (1, 4)):
        raise LoadError(f"{kind} lays its positions out in a way this engine cannot run yet: {positions.shape}")
