"""Generation requests as sequences: what the scheduler, the runner and the KV cache each have of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol, assert_never

from engine.types import BatchReport
from engine.worker.families.text import Prepared, lookup
from engine.worker.kvcache.absent import AbsentCache
from engine.worker.kvcache.cache import PrefixCache
from engine.worker.kvcache.guarded import GuardedCache
from engine.worker.kvcache.messages import Answer, Cleared, Found, Read, Saved, Seen
from engine.worker.kvcache.records import Unsupported
from engine.worker.live import LiveRequests
from engine.worker.model import Loaded
from engine.worker.runtime.runner import Runner
from engine.worker.scheduler.plan import Plan, StepResult
from engine.worker.scheduler.policy import Scheduler
from engine.worker.scheduler.sequence import Phase

logger = logging.getLogger(__name__)

KvCache = GuardedCache | AbsentCache


class MakeCache(Protocol):
    """Makes the KV cache of a model: see `PrefixCache`."""

    def __call__(self, *, new_cache: Callable[[], list[Any]], post: Callable[[Answer], None]) -> PrefixCache: ...


class Sequences:
    """Moves a request between scheduler, runner and KV cache, which do not know each other. Owned by the loop."""

    def __init__(self, loaded: Loaded, live: LiveRequests, scheduler: Scheduler, runner: Runner, kv: KvCache) -> None:
        self._loaded, self._live = loaded, live
        self._scheduler, self._runner, self._kv = scheduler, runner, kv
        runner.keeper = kv

    def begin(self, prepared: Prepared) -> None:
        """Take in a request. It is accepted as soon as it is known how much of its prompt is cached."""
        sequence = prepared.sequence
        if (live := self._live.get(sequence.id)) is None:
            raise RuntimeError(f"{sequence.id} has ended")
        live.place, live.output = self, prepared.output
        live.unaccepted = prepared.accepted
        self._runner.add(prepared.row)
        live.look_up = lookup(self._loaded, prepared, self._kv)
        ready = live.look_up is None or live.look_up(prepared.row.prompt)
        if not ready:
            sequence.phase = Phase.FETCHING
        self._scheduler.add(sequence)
        if ready:
            self._accept(sequence.id)

    def forget(self, request_id: str) -> None:
        """A request has ended. A row of the batch leaves with the next plan, and its KV is kept then."""
        leaves_by_plan = self._scheduler.end(request_id)
        self._runner.drop(request_id)
        if not leaves_by_plan:
            self._kv.close(request_id)

    def restore(self) -> None:
        """Sequences that begin now begin with what the KV cache has of their prompts."""
        for sequence in self._scheduler.starting():
            if not self._kv.ready(sequence.id):
                sequence.phase = Phase.FETCHING
                continue
            sequence.prefilled = self._runner.restore(sequence.id)
            sequence.checkpoints_at = self._kv.checkpoints_at(sequence.id)
            live = self._live.get(sequence.id)
            if live is not None and live.output is not None and not sequence.drawn:
                live.output.cached_tokens = sequence.prefilled

    def collect(self, result: StepResult) -> None:
        """Say what was drawn, and end what failed."""
        for drawn in result.drawn:
            live = self._live.get(drawn.id)
            if live is None or live.output is None:
                continue  # ended by the token before this one, or cancelled
            try:
                events = live.output.take(drawn.token, drawn.logprob, drawn.top)
            except Exception as error:  # noqa: BLE001 - its neighbours run on
                self._live.fail(drawn.id, error)
            else:
                self._live.answer(events)
        for request_id, cause in result.failed.items():
            if self._live.get(request_id) is not None:  # else its last token was among those that were drawn
                self._live.fail(request_id, cause)

    def leave(self, plan: Plan) -> None:
        """Close rows that ended. Preempted rows ask the KV cache for their own KV; without it they are computed again."""
        for request_id in plan.leave:
            self._kv.close(request_id)
        for request_id in plan.preempted:
            live = self._live.get(request_id)
            if live is None or live.look_up is None or live.look_up(self._runner.tokens(request_id)):
                self._scheduler.fetched(request_id)

    def take_in(self, answer: Answer) -> None:
        """The KV cache's thread has read or written something."""
        kv = self._kv
        assert isinstance(kv, GuardedCache)  # another has no thread
        match answer:
            case Read():
                kv.read(answer)
            case Seen():
                kv.seen(answer)
            case Found():
                for request_id in kv.found(answer):
                    self._scheduler.fetched(request_id)
                    self._accept(request_id)
            case Saved():
                kv.saved(answer)
            case Cleared():
                kv.cleared()
            case _:
                assert_never(answer)

    def report(self) -> BatchReport:
        scheduler = self._scheduler
        rows, bound = scheduler.running, scheduler.kv_tokens_bound
        return BatchReport(rows, len(self._live) - rows, scheduler.kv_tokens, bound, scheduler.preemptions)

    def _accept(self, request_id: str) -> None:
        self._live.accept(request_id, self._kv.note(request_id))


def make_kv(make: MakeCache | None, runner: Runner, post: Callable[[Answer], None]) -> KvCache:
    """The KV cache of a worker. `make` None: it shall keep nothing."""
    if make is None:
        return AbsentCache()
    try:
        return GuardedCache(make(new_cache=runner.new_cache, post=post))
    except Unsupported as error:
        logger.warning("this model's KV is not kept: %s", error, extra={"action": "kv_off"})
        return AbsentCache()
