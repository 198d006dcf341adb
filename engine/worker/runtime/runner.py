"""Executes plans on the device: the batch, and the prompt chunks of rows that have not joined yet."""

from __future__ import annotations

import traceback
from typing import Any, Protocol

import mlx.core as mx

from engine.worker import caches
from engine.worker.kvcache.absent import AbsentCache
from engine.worker.model import Loaded
from engine.worker.runtime.batch import Batch, Row
from engine.worker.runtime.loader import LoadError
from engine.worker.runtime.vision import uses_mrope
from engine.worker.scheduler.plan import Drawn, Plan, PrefillChunk, StepResult
from engine.worker_config import ModelOptions

MEASURABLE_TOKENS = 256
"""Caches grow in steps of this many tokens: shorter prompts say little about how many bytes a token takes."""
FAULTS = 3
"""Failures without a successful decode step between them after which the model or the device counts as broken. The first of them
is that of a decode step: a prompt that fails (no memory for a long one, say) fails alone."""


class Keeper(Protocol):
    """Keeps KV for later requests (`engine.worker.kvcache.guarded.GuardedCache`)."""

    def restore(self, request_id: str, *, capacity: int) -> tuple[caches.Cache, int] | None: ...
    def at_checkpoint(self, request_id: str, cache: caches.Cache, position: int) -> None: ...
    def keep(
        self, request_id: str, tokens: list[int], cache: caches.Cache, *, ended: bool, forced: bool = False
    ) -> None: ...


class Runner:
    """Owns every array of the running requests. One thread. Raises `LoadError` for a model it cannot step.

    `batches` says whether rows of this model can run together. A row's KV goes to the `keeper` when the row joins or leaves. With
    `kv_bits` plain KV is quantised, which the libraries cannot batch.
    """

    def __init__(self, loaded: Loaded, options: ModelOptions) -> None:
        self._kv_bits = options.kv_bits
        self.keeper: Keeper = AbsentCache()
        self._model = loaded.model.language_model
        self._mrope = uses_mrope(self._model)
        if self._mrope:
            _check_positions(self._model, loaded.config.get("model_type"))
        self.batches = caches.can_batch(self.new_cache())
        self._batch = Batch(self._model, mrope=self._mrope)
        self._prefilling: dict[str, Row] = {}
        self._faults = 0
        self._token_bytes: int | None = None
        self._measured_tokens = MEASURABLE_TOKENS

    @property
    def busy(self) -> bool:
        return self._batch.busy

    @property
    def pending(self) -> bool:
        """Whether tokens are being computed that nobody has read."""
        return self._batch.pending

    @property
    def token_bytes(self) -> int | None:
        """Bytes of KV a token, measured on the longest prompt so far; None before there was one of some length."""
        return self._token_bytes

    def add(self, row: Row) -> None:
        self._prefilling[row.id] = row

    def new_cache(self) -> caches.Cache:
        """One row's empty layers."""
        return caches.make(self._model, kv_bits=self._kv_bits)

    def tokens(self, row_id: str) -> tuple[int, ...]:
        """Known tokens of a row that has not joined."""
        return tuple(self._prefilling[row_id].tokens())

    def drop(self, row_id: str) -> bool:
        """Forget a row that has not joined, and keep the KV that was computed. False for rows of the batch: they leave by the
        plan."""
        row = self._prefilling.pop(row_id, None)
        if row is not None and row.cache is not None and row.prefilled:
            self.keeper.keep(row.id, row.tokens(0, row.prefilled), row.cache, ended=True)
        return row is not None

    def restore(self, row_id: str) -> int:
        """Begin a row with what the keeper has of its tokens. Returns how many need not be computed."""
        row = self._prefilling[row_id]
        if row.vision is not None and row.vision.whole is not None:
            return 0
        found = self.keeper.restore(row_id, capacity=len(row) + caches.STEP)
        if found is not None:
            row.cache, row.prefilled = found
        return row.prefilled

    def execute(self, plan: Plan) -> StepResult:
        """Raises what the device raises after `FAULTS` failures in a row; before that only rows fail."""
        drawn: list[Drawn] = []
        rows = self._batch.ids
        try:
            self._leave(plan, drawn)
            rows = self._batch.ids  # rows that were swapped out can go on
            failed = self._decode(plan, drawn)
        except Exception as error:  # noqa: BLE001 - the loop ends the rows with it
            self._count_fault(error)
            # Their caches may hold half a step, so none of these rows can go on. Rows that have not joined can.
            self._batch = Batch(self._model, mrope=self._mrope)
            traceback.clear_frames(error.__traceback__)  # they hold the caches, and memory may be what is short
            failed = dict.fromkeys(rows, error)
        for chunk in plan.prefill:
            if chunk.id in failed:
                continue  # its next chunk of the same tick
            try:
                self._prefill(chunk)
            except Exception as error:  # noqa: BLE001 - the loop ends this row with it; its neighbours run on
                self._fail_alone(error)
                failed[chunk.id] = error
                self._prefilling[chunk.id].prefilled = 0  # its cache may hold half a chunk: it must not be kept
            else:
                if chunk.joins:
                    stepped, refused = self._join(self._prefilling.pop(chunk.id), draws=chunk.draws)
                    drawn += stepped
                    failed |= refused
        return StepResult(tuple(drawn), self._batch.in_flight, failed)

    def _leave(self, plan: Plan, drawn: list[Drawn]) -> None:
        if not plan.leave:
            return
        drawn += self._batch.read()  # a row that has drawn its last token leaves before that token was read
        for row, tokens, cache in self._batch.copies_of(plan.leave):
            comes_back = row.id in plan.preempted
            self.keeper.keep(row.id, tokens, cache, ended=True, forced=comes_back)
            if comes_back:
                row.prefilled, row.cache = 0, None
                self._prefilling[row.id] = row
        self._batch.leave(plan.leave)

    def _decode(self, plan: Plan, drawn: list[Drawn]) -> dict[str, Exception]:
        """Returns rows that failed by themselves."""
        if not plan.decode:
            drawn += self._batch.read()
            return {}
        stepped, failed = self._batch.step()
        drawn += stepped
        self._faults = 0
        return failed

    def _fail_alone(self, error: Exception) -> None:
        """A row failed before it joined. That is its own fault, unless steps have failed too: then it may be the device's."""
        if self._faults:
            self._count_fault(error)

    def _count_fault(self, error: Exception) -> None:
        self._faults += 1
        if self._faults >= FAULTS:
            raise error

    def _join(self, row: Row, *, draws: bool) -> tuple[list[Drawn], dict[str, Exception]]:
        assert row.cache is not None
        self.keeper.keep(row.id, row.tokens()[:-1], row.cache, ended=False)
        try:
            found = self._step_alone(row) if draws else ([], {})
        except Exception as error:  # noqa: BLE001 - as in its prefill
            self._fail_alone(error)
            return [], {row.id: error}
        self._batch.join(row)
        return found

    def _step_alone(self, row: Row) -> tuple[list[Drawn], dict[str, Exception]]:
        """A row's first step in a batch of its own: its token need not wait for a step of all others."""
        alone = Batch(self._model, mrope=self._mrope)
        alone.join(row)
        drawn, failed = alone.step()
        drawn += (
            alone.read()
        )  # `step` waits only for a row's very first token; a row that was preempted needs this read
        ((_, _, row.cache),) = alone.copies_of(frozenset({row.id}))
        return drawn, failed

    def _prefill(self, chunk: PrefillChunk) -> None:
        row = self._prefilling[chunk.id]
        if chunk.start != row.prefilled:
            raise RuntimeError(f"a chunk begins at {chunk.start}, and {row.prefilled} tokens are prefilled")
        if row.cache is None:
            row.cache = self.new_cache()
        if chunk.end > chunk.start:
            ids = mx.array([row.tokens(chunk.start, chunk.end)], dtype=mx.int32)
            # Logits stay lazy and are never computed.
            self._model(ids, cache=row.cache, **self._arguments(row, chunk))
            states = caches.states(row.cache)
            # Beside a decode step the loop waits for that step's tokens anyway, and this tick's tokens are sent without waiting
            # for the prompt. Without one, waiting here bounds what is queued, and so how long a cancellation takes.
            if self._batch.pending:
                mx.async_eval(states)
            else:
                mx.eval(states)
            row.prefilled = chunk.end
            if chunk.end > self._measured_tokens:
                self._measured_tokens = chunk.end
                self._token_bytes = max(1, caches.nbytes(row.cache) // chunk.end)
            self.keeper.at_checkpoint(row.id, row.cache, chunk.end)

    def _arguments(self, row: Row, chunk: PrefillChunk) -> dict[str, Any]:
        if row.vision is not None:
            return row.vision.chunk(chunk.start, chunk.end)
        if self._mrope:
            positions = mx.arange(chunk.start, chunk.end)
            return {"position_ids": mx.broadcast_to(positions, (3, 1, chunk.end - chunk.start))}
        return {}


def _check_positions(language_model: Any, kind: str | None) -> None:
    """Raise `LoadError` unless text positions are [3, B, L], or [B, L] for all three axes."""
    try:
        positions, _ = language_model.get_rope_index(mx.array([[0, 1, 2, 3]]))
    except (TypeError, ValueError) as error:
        raise LoadError(f"{kind} computes positions in a way this engine cannot run yet") from error
    if positions.shape not in ((3, 1, 4), (1, 4)):
        raise LoadError(f"{kind} lays its positions out in a way this engine cannot run yet: {positions.shape}")
