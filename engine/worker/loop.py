"""The worker's one loop: mailbox → restore → plan → execute → apply → emit.

Owned by the main thread, which alone touches the model. Other threads only put messages into the mailbox: the gateway's, and
what the KV cache's thread has read or written.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, assert_never

import msgspec

from duet.channel import BlockingChannel, ChannelClosed
from duet.errors import DeadlineExceeded, DuetError, Internal, InvalidRequest, PayloadTooLarge
from engine.kvstore.index import Media
from engine.types import (
    Accepted,
    BatchReport,
    CacheNote,
    EmbeddingRequest,
    EmbeddingResult,
    Failed,
    Finished,
    GenerationRequest,
    KvReport,
    TextDelta,
    TranscriptionRequest,
    TranscriptionResult,
)
from engine.worker.kvcache.cache import PrefixCache
from engine.worker.kvcache.io_thread import Answer, Cleared, Found, Read, Saved, Seen
from engine.worker.kvcache.records import Unsupported
from engine.worker.prompts.boundaries import Cuts, cuts, role_at
from engine.worker.prompts.output import Output, TokenText
from engine.worker.prompts.structured import Compiled, Grammars
from engine.worker.runtime import memory
from engine.worker.runtime.families.audio import start_transcription
from engine.worker.runtime.families.embedding import start_embedding
from engine.worker.runtime.families.job import Job
from engine.worker.runtime.families.text import Prepared, media_of, prepare_generation
from engine.worker.runtime.loader import Loaded
from engine.worker.runtime.runner import Runner, StepResult
from engine.worker.scheduler.gate import Gate
from engine.worker.scheduler.policy import Plan, Scheduler
from engine.worker.scheduler.sequence import Phase, Priority
from engine.workers.protocol import Cancel, ClearKv, Events, FreeMemory, Hold, Ping, Pong, Shutdown, ToWorker

logger = logging.getLogger(__name__)

Mailbox = queue.SimpleQueue[ToWorker | Answer | Compiled | Exception | None]
"""None: the gateway has gone. An exception: what it sent cannot be understood."""
REPORT_SECONDS = 1.0
LOOKUP_SECONDS = 0.004
"""What is known of a prompt is waited for so long before the next step begins: without files to read it comes within a
millisecond or two, while the step before is still being computed; else it would wait for a whole tick."""
RELEASE_SECONDS = 5.0
"""After so long without work, buffers of ended requests go back to the system: a request that comes sooner uses them again."""


class MakeCache(Protocol):
    """Makes the KV cache of a model: see `PrefixCache`."""

    def __call__(self, *, new_cache: Callable[[], list[Any]], post: Callable[[Answer], None]) -> PrefixCache: ...


class Stop(Exception):
    """The gateway closed the channel or asked to end."""


@dataclass(frozen=True)
class _Lookup:
    """What the KV cache is asked for one request."""

    tenant: str
    store: bool
    media: tuple[Media, ...]
    cuts: Cuts
    role_at: Callable[[int], str]


class Loop:
    """Every request that enters ends in exactly one `Finished`, `Failed` or result, unless it was cancelled.

    Raises `LoadError` for a model that loads and yet cannot be run.
    """

    def __init__(
        self,
        loaded: Loaded,
        channel: BlockingChannel[ToWorker],
        mailbox: Mailbox,
        *,
        max_rows: int,
        chunk_tokens: int,
        kv_bits: int | None = None,
        active_kv_bytes: int | None = None,
        make_cache: MakeCache | None = None,
        flush_seconds: float = 10.0,
    ) -> None:
        self._loaded, self._channel, self._mailbox = loaded, channel, mailbox
        self._flush_seconds, self._active_kv_bytes = flush_seconds, active_kv_bytes
        self._runner = Runner(loaded, kv_bits=kv_bits) if "chat" in loaded.capabilities else None
        self._kv = self._made(make_cache)
        if self._runner is not None and not self._runner.batches and max_rows > 1:
            logger.warning("this model's requests run one after another", extra={"action": "batching_off"})
            max_rows = 1
        self._scheduler = Scheduler(max_rows=max_rows, chunk_tokens=chunk_tokens)
        self._tokens = TokenText(loaded.tokenizer) if self._runner else None
        self._grammars = Grammars(loaded, mailbox.put)
        self._outputs: dict[str, Output] = {}
        self._lookups: dict[str, _Lookup] = {}
        self._looking_up: dict[str, int] = {}
        self._reported = KvReport()
        self._reported_at = 0.0
        self._memory = memory.Reporter(channel.send)
        self._jobs: deque[Job] = deque()
        self._gate = Gate()
        self._batch_reported, self._batch_reported_at = BatchReport(), 0.0
        self._ended_at: float | None = None
        """When the tick before ended; None when the loop has waited since."""
        self._quiet_since: float | None = None
        self._released = True  # nothing to give back yet
        self._beside = 0
        """Prompt tokens whose computation the tick before did not wait for."""
        self._decoded = False
        self._events: list[Accepted | TextDelta | Finished | Failed] = []

    @property
    def idle(self) -> bool:
        """Nothing to do until a message comes, or until batch work may go on."""
        pending = self._runner is not None and self._runner.pending
        return self._scheduler.idle and not pending and self._next_job() is None

    def run(self) -> None:
        """Until the gateway goes. An unexpected error fails every live request and ends the process."""
        try:
            while True:
                self.tick()
        except (Stop, ChannelClosed):
            self._flush()
        except Exception:
            self._fail_all("the worker met an unexpected error and restarts")
            raise

    def tick(self) -> None:
        self._drain()
        began = time.monotonic()
        self._scheduler.held = self._gate.closed(began)
        if self._runner is not None:
            self._run(self._runner, began)
        if (job := self._next_job()) is not None:
            self._step(job)
            self._ended_at = None  # a tick that ran a job tells nothing of the batch
        self._emit()
        self._memory.report()
        self._report_batch()

    def _run(self, runner: Runner, now: float) -> None:
        """One tick of the batch."""
        for request_id in self._scheduler.late(now):
            self._fail(request_id, DeadlineExceeded("the answer was not complete by its deadline"))
        if self._active_kv_bytes is not None and runner.token_bytes is not None:
            self._scheduler.kv_tokens = self._active_kv_bytes // runner.token_bytes
        self._scheduler.begin(now)
        self._restore(runner)
        plan = self._scheduler.plan()
        result = runner.execute(plan)
        self._scheduler.apply(plan)
        self._collect(result)
        self._after_leaving(runner, plan)
        if self._kv is not None:
            self._kv.tend(busy=runner.busy)
            self._report(self._kv)
        if plan.decode and not runner.pending:
            self._ended_at, self._beside, self._decoded = None, 0, False  # two steps were waited for: it tells nothing
        else:
            self._measure(plan, now, beside=runner.pending)

    def _measure(self, plan: Plan, began: float, *, beside: bool) -> None:
        """Tell the pace what the device did in the time since the tick before: beside running rows nobody waits for a prompt
        chunk before the next tick, and a step's tokens are read one tick later too."""
        now, tokens = time.monotonic(), sum(chunk.stop - chunk.start for chunk in plan.prefill)
        waited = self._beside + (0 if beside else tokens)
        if self._decoded or waited:
            since = began if self._ended_at is None else self._ended_at
            self._scheduler.pace.observe(now - since, decoded=self._decoded, prefill_tokens=waited)
        self._ended_at, self._beside, self._decoded = now, tokens if beside else 0, plan.decode

    def _next_job(self) -> Job | None:
        """The first of the best priority. Batch jobs wait as batch rows do."""
        jobs = [job for job in self._jobs if not (self._scheduler.held and job.priority == "batch")]
        return min(jobs, key=lambda job: Priority[job.priority.upper()], default=None)

    def _drain(self) -> None:
        """Take what is in the mailbox; wait for it when there is nothing else to do."""
        now = time.monotonic()
        # One look at the gate for both questions: is there work, and when does it open? Had it opened between two looks,
        # nothing would wake us.
        self._scheduler.held = self._gate.closed(now)
        if self.idle and self._mailbox.empty():
            self._ended_at = None
            self._scheduler.check()
            wakes = [self._gate.opens_in(now), self._scheduler.next_deadline(now), self._release(now)]
            self._memory.report(now=True)
            self._report_batch(now=True)
            if self._kv is not None:
                wakes.append(self._kv.tend(busy=False))
                self._report(self._kv, now=True)
            wake = min((seconds for seconds in wakes if seconds is not None), default=None)
            try:
                self._handle(self._mailbox.get(timeout=wake))
            except queue.Empty:
                return
        before = frozenset(self._looking_up)
        while not self._mailbox.empty():
            self._handle(self._mailbox.get())
        self._await_lookups(self._looking_up.keys() - before)
        if not self.idle:
            self._quiet_since, self._released = None, False

    def _await_lookups(self, new: Set[str]) -> None:
        """Of requests that have just come."""
        until = time.monotonic() + LOOKUP_SECONDS
        while new & self._looking_up.keys() and (left := until - time.monotonic()) > 0:
            try:
                self._handle(self._mailbox.get(timeout=left))
            except queue.Empty:
                return

    def _release(self, now: float) -> float | None:
        """Give memory back when it has been quiet for long enough. Seconds until then; None when nothing is left to give."""
        if self._released or self._jobs or self._scheduler.running:  # held work goes on soon, with the same memory
            return None
        if self._quiet_since is None:
            self._quiet_since = now
        left = self._quiet_since + RELEASE_SECONDS - now
        if left > 0:
            return left
        memory.release()
        self._released = True
        return None

    def _handle(self, message: ToWorker | Answer | Compiled | Exception | None) -> None:
        match message:
            case None | Shutdown():
                raise Stop
            case Exception():
                raise message
            case Cancel(request_id):
                self._end(request_id)
                self._jobs = deque(job for job in self._jobs if job.id != request_id)
            case Read() | Found() | Seen() | Saved() | Cleared():
                self._take_in(message)
            case Compiled(request):
                if self._grammars.back(message):
                    self._handle(request)
            case Hold(on):
                self._gate.hold(time.monotonic()) if on else self._gate.release(time.monotonic())
            case Ping():
                self._channel.send(Pong())
            case ClearKv():
                if self._kv is not None:
                    self._kv.clear()
            case FreeMemory():
                if self._kv is not None:
                    self._kv.free_memory()
                memory.release()
            case GenerationRequest() | EmbeddingRequest() | TranscriptionRequest():
                try:
                    self._start(message)
                except DuetError as error:
                    self._fail(message.id, error)
                except Exception as error:
                    logger.exception("a request could not be prepared", extra={"action": "request_failed"})
                    self._fail(message.id, Internal(f"the request could not be prepared: {type(error).__name__}"))
            case _:
                assert_never(message)

    def _start(self, request: GenerationRequest | EmbeddingRequest | TranscriptionRequest) -> None:
        wanted = {GenerationRequest: "chat", EmbeddingRequest: "embedding", TranscriptionRequest: "asr"}[type(request)]
        if wanted not in self._loaded.capabilities:
            able = " and ".join(self._loaded.capabilities)
            raise _unable(request.model, wanted, able)
        match request:
            case GenerationRequest():
                assert self._tokens is not None and self._runner is not None
                form = None
                if request.structure is not None:
                    form = self._grammars.form(request, request.structure)
                    if form is None:
                        return  # it comes back as `Compiled`
                prepared = prepare_generation(self._loaded, self._tokens, request, form)
                self._outputs[request.id] = prepared.output
                self._runner.add(prepared.row)
                ready = self._look_up(request, prepared)
                if not ready:
                    prepared.sequence.phase = Phase.FETCHING
                self._looking_up[request.id] = prepared.sequence.prompt_tokens
                self._scheduler.add(prepared.sequence)
                if ready:
                    self._accept(request.id)
            case EmbeddingRequest():
                self._jobs.append(start_embedding(self._loaded, request))
            case TranscriptionRequest():
                self._jobs.append(start_transcription(self._loaded, request))
            case _:
                assert_never(request)

    def _collect(self, result: StepResult) -> None:
        for drawn in result.drawn:
            output = self._outputs.get(drawn.id)
            if output is None:
                continue  # ended by the token before, or cancelled
            try:
                delta, finished = output.take(drawn.token, drawn.logprob, drawn.top)
            except Exception as error:  # noqa: BLE001 - its neighbours run on
                self._fail_row(drawn.id, error)
                continue
            if delta is not None:
                self._events.append(delta)
            if finished is not None:
                self._events.append(finished)
                self._end(drawn.id)
        for request_id, cause in result.failed.items():
            if request_id in self._outputs:  # what was drawn before may have been its end
                self._fail_row(request_id, cause)

    def _fail_row(self, request_id: str, error: Exception) -> None:
        if isinstance(error, DuetError):
            self._fail(request_id, error)
            return
        logger.error("a row failed", exc_info=error, extra={"action": "row_failed"})
        self._fail(request_id, Internal(f"the model failed on this request: {type(error).__name__}"))

    def _step(self, job: Job) -> None:
        try:
            result: EmbeddingResult | TranscriptionResult | None = job.step()
        except DuetError as error:
            self._fail(job.id, error)
        except Exception as error:
            logger.exception("a job failed", extra={"action": "job_failed"})
            self._fail(job.id, Internal(f"the model failed on this request: {type(error).__name__}"))
        else:
            if result is None:
                # Round robin: a long recording does not hold up a short one.
                self._jobs.remove(job)
                self._jobs.append(job)
                return
            self._answer(result)
        self._jobs = deque(other for other in self._jobs if other is not job)

    def _answer(self, result: EmbeddingResult | TranscriptionResult) -> None:
        try:
            self._channel.send(result)
        except PayloadTooLarge as error:
            self._fail(result.id, error)

    def _end(self, request_id: str) -> None:
        self._outputs.pop(request_id, None)
        self._looking_up.pop(request_id, None)
        self._lookups.pop(request_id, None)
        self._grammars.forget(request_id)
        leaves_by_plan = self._scheduler.end(request_id)
        if self._runner is not None:
            self._runner.drop(request_id)
        if self._kv is not None and not leaves_by_plan:
            self._kv.close(request_id)

    # The KV cache ----------------------------------------------------------------------------------------------------

    def _made(self, make_cache: MakeCache | None) -> PrefixCache | None:
        if make_cache is None or self._runner is None:
            return None
        try:
            kv = make_cache(new_cache=self._runner.new_cache, post=self._mailbox.put)
        except Unsupported as error:
            logger.warning("this model's KV is not kept: %s", error, extra={"action": "kv_off"})
            return None
        self._runner.keeper = kv
        return kv

    def _look_up(self, request: GenerationRequest, prepared: Prepared) -> bool:
        """Ask for what is known of the prompt. False: it is being fetched."""
        row, text, encoded = prepared.row, prepared.text, prepared.encoded
        media = (
            media_of(self._loaded, request, row.prompt)
            if self._kv is not None and not prepared.sequence.whole
            else None
        )
        if self._kv is None or media is None:
            return True
        where = (
            cuts(self._loaded, request, text, encoded, row.prompt) if self._kv.has_state and request.store else Cuts()
        )
        places = encoded if not media else None
        self._lookups[request.id] = _Lookup(
            request.tenant, request.store, media, where, partial(role_at, request, places, text)
        )
        return self._open(self._kv, request.id, row.prompt)

    def _open(self, kv: PrefixCache, request_id: str, prompt: tuple[int, ...]) -> bool:
        asked = self._lookups[request_id]
        return kv.open(
            request_id, prompt, asked.media, tenant=asked.tenant, store=asked.store, system=asked.cuts.system,
            document=asked.cuts.document, boundary=asked.cuts.boundary, role_at=asked.role_at,
        )  # fmt: skip

    def _accept(self, request_id: str) -> None:
        prompt_tokens = self._looking_up.pop(request_id, None)
        if prompt_tokens is not None:
            note = self._kv.note(request_id) if self._kv is not None else CacheNote(reason="disabled")
            self._events.append(Accepted(request_id, prompt_tokens, note))

    def _take_in(self, answer: Answer) -> None:
        assert self._kv is not None
        match answer:
            case Read():
                self._kv.read(answer)
            case Seen():
                self._kv.seen(answer)
            case Found():
                for request_id in self._kv.found(answer):
                    self._scheduler.fetched(request_id)
                    self._accept(request_id)
            case Saved():
                self._kv.saved(answer)
            case Cleared():
                self._report(self._kv, now=True)
            case _:
                assert_never(answer)

    def _restore(self, runner: Runner) -> None:
        """Rows that begin now begin with what memory has of their prompts."""
        for sequence in self._scheduler.starting():
            sequence.prefilled = runner.restore(sequence.id)
            if self._kv is not None:
                sequence.stops = self._kv.stops(sequence.id)
            output = self._outputs.get(sequence.id)
            if output is not None and not sequence.issued:
                output.cached_tokens = sequence.prefilled

    def _after_leaving(self, runner: Runner, plan: Plan) -> None:
        """Rows that ended are forgotten; preempted ones ask for their own KV and wait. What has none is computed again."""
        for request_id in plan.leave:
            if self._kv is not None:
                self._kv.close(request_id)
        for request_id in plan.preempted:
            kv = self._kv if request_id in self._lookups else None
            if kv is None or self._open(kv, request_id, runner.prompt(request_id)):
                self._scheduler.fetched(request_id)

    def preempt(self, request_id: str) -> bool:
        """Swap a running row out: its KV goes to the cache, and it goes on when it is its turn again. False if it cannot."""
        return self._scheduler.preempt(request_id)

    def _report(self, kv: PrefixCache, *, now: bool = False) -> None:
        if not now and time.monotonic() - self._reported_at < REPORT_SECONDS:
            return
        self._reported_at = time.monotonic()
        report = msgspec.structs.replace(kv.report)
        if report != self._reported:
            self._reported = report
            self._channel.send(report)

    def _report_batch(self, *, now: bool = False) -> None:
        if self._runner is None or (not now and time.monotonic() - self._batch_reported_at < REPORT_SECONDS):
            return
        self._batch_reported_at = time.monotonic()
        scheduler = self._scheduler
        report = BatchReport(
            scheduler.running, scheduler.waiting, scheduler.held_tokens(), scheduler.kv_tokens, scheduler.preemptions
        )
        if report != self._batch_reported:
            self._batch_reported = report
            self._channel.send(report)

    def _flush(self) -> None:
        """The gateway wants this process to end: what is only in memory goes to SSD."""
        if self._kv is None:
            return

        def answers() -> Answer | None:
            while not self._mailbox.empty():
                if isinstance(message := self._mailbox.get(), Saved):
                    return message
            return None

        if not self._kv.flush(self._flush_seconds, answers):
            logger.warning("not all KV could be written in time", extra={"action": "kv_flush_late"})

    def _fail(self, request_id: str, error: DuetError) -> None:
        self._end(request_id)
        self._events.append(
            Failed(request_id, error.code, error.message, error.param, error.retry_after_seconds),
        )

    def _fail_all(self, message: str) -> None:
        for request_id in [*self._outputs, *self._grammars.waiting, *(job.id for job in self._jobs)]:
            self._events.append(Failed(request_id, "worker_lost", message))
        self._emit()

    def _emit(self) -> None:
        events, self._events = self._events, []
        try:
            if events:
                self._channel.send(Events(events))
        except PayloadTooLarge:
            self._emit_singly(events)

    def _emit_singly(self, events: list[Accepted | TextDelta | Finished | Failed]) -> None:
        """All together they are too large for a message: a request whose event is so alone fails, its neighbours do not."""
        ended: set[str] = set()
        for event in events:
            if event.id in ended:
                continue
            try:
                self._channel.send(Events([event]))
            except PayloadTooLarge as error:
                ended.add(event.id)
                self._end(event.id)
                self._channel.send(Events([Failed(event.id, error.code, error.message)]))


def _unable(model: str, wanted: str, able: str) -> InvalidRequest:
    return InvalidRequest(f"{model} cannot do {wanted}: it does {able}", param="model")
