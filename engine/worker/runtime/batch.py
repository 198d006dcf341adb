"""The decoding batch: rows that run together, their caches, and one step of all of them.

Every row is prefilled alone (batch of one, plain caches, no padding) and then joins. A row's tokens are its prompt and what was
drawn since. All but the last are prefilled, so prefill never computes logits; the last is the row's first decode input:

    prompt                                         said
    |--- prefilled ---|--- next chunk ---|L|  a  b  c | d
                                          ^ last prompt token: first decode input
                                                        ^ newest: drawn, not in the cache yet

A row that was preempted after d prefills (or restores) the prompt and a b c; d is then its first decode input.

One row alone has plain caches. From two rows on they are the library's batched ones, because a batched cache of one row is slow
in some models, and needless.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx

from engine.types import SamplingParams
from engine.worker import caches
from engine.worker.runtime.sampling import Columns, Penalties, top_logprobs
from engine.worker.runtime.vision import VisionInputs
from engine.worker.scheduler.plan import Drawn


class Constraint(Protocol):
    """Which tokens a row may draw next (`engine.worker.forms.form.FormConstraint`)."""

    def observe(self, token: int) -> None: ...
    def addends(self, width: int) -> Any: ...


@dataclass
class Row:
    """One sequence on the device. `prompt` are the request's token ids, `said` those drawn and read since: neither ever shrinks.

    `cache` is its own until it joins the batch, and holds `prefilled` tokens. `rope_delta` is how far its text positions are
    ahead of the cache since its `vision` was read.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    cache: caches.Cache | None = None
    vision: VisionInputs | None = None
    constraint: Constraint | None = field(default=None, repr=False)
    seed: int = 0
    prefilled: int = 0
    said: list[int] = field(default_factory=list, repr=False)
    penalties: Penalties | None = field(default=None, repr=False)
    rope_delta: int = 0

    def __post_init__(self) -> None:
        chosen = self.sampling.seed
        self.seed = secrets.randbits(32) if chosen is None else chosen
        self.penalties = Penalties.of(self.sampling, self.prompt)

    def __len__(self) -> int:
        """Tokens that are known."""
        return len(self.prompt) + len(self.said)

    @property
    def last(self) -> int:
        """Its next decode input, once all tokens are read."""
        return self.said[-1] if self.said else self.prompt[-1]

    def tokens(self, start: int = 0, end: int | None = None) -> list[int]:
        """Known tokens start..end."""
        known, end = len(self.prompt), len(self) if end is None else end
        return [*self.prompt[start:end], *self.said[max(0, start - known) : max(0, end - known)]]


@dataclass(frozen=True)
class _Pending:
    """The tokens of a step that is being computed. They are read one step later, so that Python's work overlaps the device's."""

    rows: tuple[Row, ...]
    tokens: Any
    logprobs: Any = None
    top_ids: Any = None
    top_values: Any = None


class Batch:
    """Owned by the runner. Rows keep their order. `_last` [B] is each row's newest token, perhaps not computed yet.

    Invariant: every row of `_cache` has run. A row that joins waits in `_joining` until the next step runs it, because the
    libraries' caches can neither extract nor filter rows of a batch that is still empty (prompts of one token).
    """

    def __init__(self, language_model: Any, *, mrope: bool) -> None:
        self._model = language_model
        self._mrope = mrope
        self.rows: list[Row] = []
        self._joining: list[Row] = []
        self._cache: caches.Cache = []
        self._last = mx.array([], dtype=mx.int32)
        self._positions = mx.array([], dtype=mx.int32)
        self._columns: Columns | None = None
        self._pending: _Pending | None = None

    @property
    def busy(self) -> bool:
        return bool(self.rows or self._joining) or self._pending is not None

    @property
    def pending(self) -> bool:
        return self._pending is not None

    @property
    def in_flight(self) -> frozenset[str]:
        """Rows of a step whose tokens nobody has read."""
        return frozenset() if self._pending is None else frozenset(row.id for row in self._pending.rows)

    @property
    def ids(self) -> frozenset[str]:
        """Rows that take part in the next step."""
        return frozenset(row.id for row in [*self.rows, *self._joining])

    def copies_of(self, ids: frozenset[str]) -> list[tuple[Row, list[int], caches.Cache]]:
        """Copies of the caches of these rows, as far as they are in the batch, and the tokens that each holds.

        Call `read` before: then the newest token is drawn, and not yet in the cache.
        """
        found: list[tuple[Row, list[int], caches.Cache]] = []
        for i, row in enumerate(self.rows):
            if row.id in ids:
                found.append((row, row.tokens()[:-1], self._extract(i)))
        for row in self._joining:
            if row.id in ids:
                assert row.cache is not None
                found.append((row, row.tokens()[:-1], row.cache))
        return found

    def leave(self, ids: frozenset[str]) -> None:
        """Drop rows. A token of theirs that is still being computed is dropped with them."""
        self._joining = [row for row in self._joining if row.id not in ids]
        keep = [i for i, row in enumerate(self.rows) if row.id not in ids]
        if len(keep) == len(self.rows):
            return
        if not keep:
            self._cache = []
        elif len(keep) == 1:
            self._cache = self._extract(keep[0])
        else:
            caches.keep(self._cache, keep)
        self.rows = [self.rows[i] for i in keep]
        index = mx.array(keep, dtype=mx.int32)
        self._last, self._positions, self._columns = self._last[index], self._positions[index], None

    def join(self, row: Row) -> None:
        """Take in a prefilled row from the next step on. Its cache holds all of its tokens but the last."""
        assert row.cache is not None
        self._joining.append(row)

    def _admit(self) -> None:
        """Merge the joining rows' caches into the batch's: one copy, however many they are."""
        rows, self._joining = self._joining, []
        if not rows:
            return
        joining = [row.cache for row in rows if row.cache is not None]
        if len(self.rows) + len(rows) == 1:
            self._cache = joining[0]
        elif len(self.rows) < 2 or any(caches.has_empty(cache) for cache in joining):
            self._cache = caches.merge([*(self._extract(i) for i in range(len(self.rows))), *joining])
        else:
            caches.extend(self._cache, joining)
        positions = []
        for row in rows:
            row.cache = None
            if row.vision is not None:  # the prompt is in the cache: its embeddings need not stay
                row.rope_delta, row.vision = row.vision.rope_delta, None
            positions.append(len(row) - 1 + row.rope_delta)
        self.rows += rows
        self._last = mx.concatenate([self._last, mx.array([row.last for row in rows], dtype=mx.int32)])
        self._positions = mx.concatenate([self._positions, mx.array(positions, dtype=mx.int32)])
        self._columns = None

    def step(self) -> tuple[list[Drawn], dict[str, Exception]]:
        """Launch one decode step of all rows and return the tokens of the step before. If a row draws its first token, which
        somebody waits for, also return those of this step.

        A row whose penalties or constraint fail is reported in the second value and does not harm the others.
        """
        self._admit()
        first = any(not row.said for row in self.rows)
        logits = self._forward() if self.rows else None
        drawn = self.read()
        failed = self._sample(logits) if logits is not None else {}
        if first:
            drawn += self.read()
        return drawn, failed

    def read(self) -> list[Drawn]:
        """Wait for the tokens that are being computed, and show them to each row's penalties and constraint."""
        pending, self._pending = self._pending, None
        if pending is None:
            return []
        living = {id(row) for row in self.rows}
        columns = [pending.tokens, pending.logprobs, pending.top_ids, pending.top_values]
        lists: list[Any] = [None if column is None else column.tolist() for column in columns]
        tokens, logprobs, top_ids, top_values = lists
        drawn = []
        for i, row in enumerate(pending.rows):
            if id(row) not in living:
                continue
            row.said.append(tokens[i])
            if row.penalties is not None:
                row.penalties.observe(tokens[i])
            if row.constraint is not None:
                row.constraint.observe(tokens[i])
            wants = row.sampling.logprobs
            best = tuple(zip(top_ids[i], top_values[i], strict=True)) if wants and top_ids is not None else ()
            logprob = logprobs[i] if wants else None
            drawn.append(Drawn(row.id, tokens[i], logprob, best[: row.sampling.top_logprobs]))
        return drawn

    def _forward(self) -> Any:
        extra = {}
        if self._mrope:
            # Explicit positions: left to itself the model keeps them in state that all requests share.
            extra["position_ids"] = mx.broadcast_to(self._positions[None, :, None], (3, len(self.rows), 1))
            self._positions = self._positions + 1
        logits = self._model(self._last[:, None], cache=self._cache, **extra).logits[:, -1, :]
        mx.async_eval(logits)
        return logits

    def _sample(self, raw: Any) -> dict[str, Exception]:
        logits, failed = self._adjusted(raw)
        if self._columns is None:
            self._columns = Columns([row.sampling for row in self.rows], [row.seed for row in self.rows])
        self._last = self._columns.sample(logits, [len(row.said) for row in self.rows])
        logprobs: tuple[Any, Any, Any] = (None, None, None)
        if any(row.sampling.logprobs for row in self.rows):
            count = max(row.sampling.top_logprobs for row in self.rows if row.sampling.logprobs)
            logprobs = top_logprobs(raw, self._last, count)
        mx.async_eval(self._last, *[column for column in logprobs if column is not None])
        self._pending = _Pending(tuple(self.rows), self._last, *logprobs)
        return failed

    def _adjusted(self, logits: Any) -> tuple[Any, dict[str, Exception]]:
        """Logits [B, V] with each row's penalties and then its constraint, which has the last word; and the rows that failed."""
        failed: dict[str, Exception] = {}
        if not any(row.penalties or row.constraint for row in self.rows):
            return logits, failed
        parts = []
        for i, row in enumerate(self.rows):
            part = logits[i : i + 1].astype(mx.float32)
            try:
                adjusted = part if row.penalties is None else row.penalties.apply(part)
                if row.constraint is not None:
                    adjusted = adjusted + mx.array(row.constraint.addends(logits.shape[-1]))
            except Exception as error:  # noqa: BLE001 - handed to the caller, who ends this row with it
                failed[row.id] = error
                adjusted = part
            parts.append(adjusted)
        return mx.concatenate(parts), failed

    def _extract(self, i: int) -> caches.Cache:
        return self._cache if len(self.rows) == 1 else caches.extract(self._cache, i)
