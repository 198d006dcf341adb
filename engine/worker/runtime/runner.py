"""Executes plans on the device: the batch, and the prompt chunks of rows that have not joined yet."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
from mlx_vlm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache

from engine.worker.model import Loaded
from engine.worker.runtime.batch import Batch, Drawn, Row, can_batch
from engine.worker.runtime.loader import LoadError
from engine.worker.runtime.vision import uses_mrope
from engine.worker.scheduler.policy import Plan, PrefillChunk
from engine.worker_config import ModelOptions

MEASURABLE_TOKENS = 256
"""Caches grow in steps of this many tokens: shorter prompts tell little about what a token takes."""
FAULTS = 3
"""Failures without a decode step between them, the first of them one of a step (no memory for a long row, say), after which the
model or the device counts as broken."""
KV_GROUP = 32
"""Values that share a scale in quantised KV: divides every head size in use."""


@dataclass(frozen=True)
class StepResult:
    """Tokens that became known, and rows that failed by themselves with their cause."""

    drawn: tuple[Drawn, ...]
    failed: dict[str, Exception]


class Keeper(Protocol):
    """Who keeps KV for later requests (`engine.worker.kvcache.guarded.GuardedCache`)."""

    def restore(self, request_id: str, *, capacity: int) -> tuple[list[Any], int] | None: ...
    def at_checkpoint(self, request_id: str, cache: list[Any], position: int) -> None: ...
    def keep(
        self, request_id: str, tokens: list[int], cache: list[Any], *, ended: bool, forced: bool = False
    ) -> None: ...


class KeepsNothing:
    """Without a cache every prompt is computed."""

    def restore(self, request_id: str, *, capacity: int) -> None:
        return None

    def at_checkpoint(self, request_id: str, cache: list[Any], position: int) -> None:
        return None

    def keep(self, request_id: str, tokens: list[int], cache: list[Any], *, ended: bool, forced: bool = False) -> None:
        return None


class Runner:
    """Owns every array of the running requests. One thread. Raises `LoadError` for a model it cannot step.

    `batches` says whether rows of this model can run together. What leaves goes to the `keeper` first. With `kv_bits` plain
    KV is quantised, which the libraries cannot batch.
    """

    def __init__(self, loaded: Loaded, options: ModelOptions) -> None:
        self._kv_bits = options.kv_bits
        self.keeper: Keeper = KeepsNothing()
        self._model = loaded.model.language_model
        self._mrope = uses_mrope(self._model)
        if self._mrope:
            _check_positions(self._model, loaded.config.get("model_type"))
        self.batches = all(can_batch(layer) for layer in self.new_cache())
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
        """Bytes of KV a token, as the longest prompt so far had them; None before the first one of some length."""
        return self._token_bytes

    def add(self, row: Row) -> None:
        self._prefilling[row.id] = row

    def new_cache(self) -> list[Any]:
        """One row's empty layers."""
        layers = list(make_prompt_cache(self._model))
        if self._kv_bits is None:
            return layers
        bits = self._kv_bits
        return [QuantizedKVCache(KV_GROUP, bits) if type(layer) is KVCache else layer for layer in layers]

    def prompt(self, row_id: str) -> tuple[int, ...]:
        """Of a row that has not joined."""
        return self._prefilling[row_id].prompt

    def drop(self, row_id: str) -> bool:
        """Forget a row that has not joined, keeping what was computed; False for rows of the batch, which leave by the plan."""
        row = self._prefilling.pop(row_id, None)
        if row is not None and row.cache is not None and row.prefilled:
            self.keeper.keep(row.id, list(row.prompt[: row.prefilled]), row.cache, ended=True)
        return row is not None

    def restore(self, row_id: str) -> int:
        """Begin a row with what is known of its prompt. Returns the tokens that need not be computed."""
        row = self._prefilling[row_id]
        if row.vision is not None and row.vision.whole is not None:
            return 0
        found = self.keeper.restore(row_id, capacity=len(row.prompt) + KVCache.step)
        if found is not None:
            row.cache, row.prefilled = found
        return row.prefilled

    def execute(self, plan: Plan) -> StepResult:
        """Raises what the device raises once `FAULTS` steps in a row could not be computed; before, only rows fail."""
        drawn: list[Drawn] = []
        rows = self._batch.ids
        try:
            self._leave(plan, drawn)
            rows = self._batch.ids  # those that were swapped out can go on
            failed = self._decode(plan, drawn)
        except Exception as error:  # noqa: BLE001 - the loop ends the rows with it
            self._count_fault(error)
            # Their caches may hold half a step: none of them can go on. Whoever waits can.
            self._batch = Batch(self._model, mrope=self._mrope)
            traceback.clear_frames(error.__traceback__)  # they hold the caches, of which there may be too much
            failed = dict.fromkeys(rows, error)
        for chunk in plan.prefill:
            if chunk.id in failed:
                continue  # its next chunk of the same tick
            try:
                self._prefill(chunk)
            except Exception as error:  # noqa: BLE001 - the loop ends this row with it; its neighbours run on
                self._fail_alone(error)
                failed[chunk.id] = error
                self._prefilling[chunk.id].prefilled = 0  # whatever its cache holds is not to be kept
            else:
                if chunk.joins:
                    stepped, refused = self._join(self._prefilling.pop(chunk.id), draws=chunk.draws)
                    drawn += stepped
                    failed |= refused
        return StepResult(tuple(drawn), failed)

    def _leave(self, plan: Plan, drawn: list[Drawn]) -> None:
        if not plan.leave:
            return
        drawn += self._batch.read()  # a row that has drawn its last token leaves before that token was read
        for row, tokens, cache in self._batch.caches(plan.leave):
            back = row.id in plan.preempted
            self.keeper.keep(row.id, tokens, cache, ended=True, forced=back)
            if back:
                self._wait_again(row)
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
        """A row failed before it joined: by itself, unless steps fail too, and then it may be the device."""
        if self._faults:
            self._count_fault(error)

    def _count_fault(self, error: Exception) -> None:
        self._faults += 1
        if self._faults >= FAULTS:
            raise error

    def _wait_again(self, row: Row) -> None:
        """Its prompt is now all that it has read and said; draws and penalties go on where they were."""
        row.prompt, row.said, row.prefilled, row.cache = (*row.prompt, *row.said), [], 0, None
        self._prefilling[row.id] = row

    def _join(self, row: Row, *, draws: bool) -> tuple[list[Drawn], dict[str, Exception]]:
        assert row.cache is not None
        self.keeper.keep(row.id, list(row.prompt[:-1]), row.cache, ended=False)
        try:
            found = self._step_alone(row) if draws else ([], {})
        except Exception as error:  # noqa: BLE001 - as in its prefill
            self._fail_alone(error)
            return [], {row.id: error}
        self._batch.join(row)
        return found

    def _step_alone(self, row: Row) -> tuple[list[Drawn], dict[str, Exception]]:
        """A row's first step in a batch of its own: its token need not wait for a step of all others. Afterwards the token is the
        end of its prompt, as for a row that was preempted."""
        alone = Batch(self._model, mrope=self._mrope)
        alone.join(row)
        drawn, failed = alone.step()
        drawn += alone.read()  # of a row that comes back it is not the first token of all, which a step waits for
        ((_, _, row.cache),) = alone.caches(frozenset({row.id}))
        row.prompt, row.said = (*row.prompt, *row.said), []
        return drawn, failed

    def _prefill(self, chunk: PrefillChunk) -> None:
        row = self._prefilling[chunk.id]
        if row.cache is None:
            row.cache = self.new_cache()
        if chunk.stop > chunk.start:
            ids = mx.array([row.prompt[chunk.start : chunk.stop]], dtype=mx.int32)
            # Logits stay lazy and are never computed.
            self._model(ids, cache=row.cache, **self._arguments(row, chunk))
            states = [layer.state for layer in row.cache]
            # Behind a decode step the next one's tokens are waited for anyway, and this tick's are sent without waiting for
            # the prompt. Without one, waiting here bounds what is queued, and so how long a cancellation takes.
            if self._batch.pending:
                mx.async_eval(states)
            else:
                mx.eval(states)
            row.prefilled = chunk.stop
            if chunk.stop > self._measured_tokens:
                self._measured_tokens = chunk.stop
                self._token_bytes = max(1, sum(int(layer.nbytes) for layer in row.cache) // chunk.stop)
            self.keeper.at_checkpoint(row.id, row.cache, chunk.stop)

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
