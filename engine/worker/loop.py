"""The worker's one loop: mailbox → restore → plan → execute → apply → emit.

Owned by the main thread, which alone touches the model. Other threads only put messages into the mailbox: the gateway's,
what the KV cache's thread has read or written, and compiled forms.
"""

from __future__ import annotations

import logging
import math
import queue
import time
from collections.abc import Callable, Set
from typing import Any, Protocol, assert_never

import msgspec

from duet.channel import BlockingChannel, ChannelClosed
from duet.errors import DeadlineExceeded, DuetError, Internal, InvalidRequest, PayloadTooLarge
from engine.fleet.protocol import Cancel, ClearKv, EventFrame, FreeMemory, PauseBatch, Ping, Pong, Shutdown, ToWorker
from engine.types import (
    Accepted,
    BatchReport,
    CacheNote,
    Embedded,
    EmbeddingRequest,
    Event,
    Failed,
    GenerationRequest,
    KvReport,
    Request,
    Transcribed,
    TranscriptionRequest,
    is_last,
)
from engine.worker.answers.detokenise import TokenText
from engine.worker.answers.output import Output
from engine.worker.families.embedding import start_embedding
from engine.worker.families.text import Preparation, Prepared, lookup
from engine.worker.families.transcription import start_transcription
from engine.worker.forms.compiling import Compiled, FormQueue
from engine.worker.forms.form import Form
from engine.worker.kvcache.cache import PrefixCache
from engine.worker.kvcache.guarded import GuardedCache
from engine.worker.kvcache.messages import Answer, Cleared, Found, Read, Saved, Seen
from engine.worker.kvcache.records import Unsupported
from engine.worker.model import Loaded
from engine.worker.reports import Reporter
from engine.worker.runtime import memory
from engine.worker.runtime.runner import Runner
from engine.worker.scheduler.batch_pause import BatchPause
from engine.worker.scheduler.jobs import Job, Jobs, Queued
from engine.worker.scheduler.pace import Ticks
from engine.worker.scheduler.plan import Plan, StepResult
from engine.worker.scheduler.policy import Scheduler
from engine.worker.scheduler.sequence import Phase
from engine.worker_config import WorkerConfig

logger = logging.getLogger(__name__)

Mailbox = queue.SimpleQueue[ToWorker | Answer | Compiled | Exception | None]
"""None: the gateway has gone. An exception: what it sent cannot be understood."""
Result = Embedded | Transcribed | Prepared
"""Of a job. What is prepared goes on as a sequence."""
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


class Loop:
    """Every request that enters ends in exactly one `Finished`, `Failed` or result, unless it was cancelled.

    Raises `LoadError` for a model that loads and yet cannot be run.
    """

    def __init__(
        self,
        loaded: Loaded,
        channel: BlockingChannel[ToWorker],
        mailbox: Mailbox,
        config: WorkerConfig,
        *,
        make_cache: MakeCache | None = None,
    ) -> None:
        self._loaded, self._channel, self._mailbox = loaded, channel, mailbox
        self._flush_seconds = config.kv.flush_seconds if config.kv is not None else 0.0
        self._active_kv_bytes, self._options = config.active_kv_bytes, config.options
        max_rows = config.batch.max_rows
        self._runner = Runner(loaded, config.options) if "chat" in loaded.capabilities else None
        self._kv = self._made(make_cache)
        if self._runner is not None and not self._runner.batches and max_rows > 1:
            logger.warning("this model's requests run one after another", extra={"action": "batching_off"})
            max_rows = 1
        self._scheduler = Scheduler(max_rows=max_rows, chunk_tokens=config.batch.chunk_tokens)
        self._tokens = TokenText(loaded.tokenizer) if self._runner else None
        self._forms = FormQueue(loaded, mailbox.put)
        self._outputs: dict[str, Output] = {}
        self._lookups: dict[str, Callable[[tuple[int, ...]], bool]] = {}
        self._looking_up: dict[str, int] = {}
        self._jobs = Jobs[Result]()
        self._live: dict[str, float] = {}
        """Deadlines of all requests that have not ended; infinite without one."""
        self._batch_pause = BatchPause()
        self._ticks = Ticks(self._scheduler.pace)
        self._quiet_since: float | None = None
        self._released = True  # nothing to give back yet
        self._events: list[Event] = []
        self._reporters: list[memory.Reporter | Reporter[Any]] = [memory.Reporter(channel.send)]
        if self._runner is not None:
            self._reporters.append(Reporter(channel.send, self._batch_report, BatchReport()))
        if (kv := self._kv) is not None:
            self._reporters.append(Reporter(channel.send, lambda: msgspec.structs.replace(kv.report), KvReport()))

    @property
    def idle(self) -> bool:
        """Nothing to do until a message comes, or until batch work may go on."""
        pending = self._runner is not None and self._runner.pending
        return self._scheduler.idle and not pending and not self._jobs.ready(self._may_step)

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
        self._scheduler.paused = self._batch_pause.paused(began)
        for request_id in [name for name, deadline in self._live.items() if began >= deadline]:
            self._fail(request_id, DeadlineExceeded("the answer was not complete by its deadline"))
        if self._runner is not None:
            self._run(self._runner, began)
        self._emit()  # no token waits for a job
        if (job := self._jobs.next(began, self._may_step, paused=self._scheduler.paused)) is not None:
            self._step(job)
            self._ticks.interrupted()
            self._emit()
        self._report()

    def _run(self, runner: Runner, now: float) -> None:
        """One tick of the batch."""
        if self._active_kv_bytes is not None and runner.token_bytes is not None:
            self._scheduler.kv_tokens_bound = self._active_kv_bytes // runner.token_bytes
        self._scheduler.begin(now)
        self._restore(runner)
        plan = self._scheduler.plan()
        result = runner.execute(plan)
        self._scheduler.apply(plan, result)
        self._collect(result)
        self._after_leaving(runner, plan)
        if self._kv is not None:
            self._kv.tend(busy=runner.busy)
        if (plan.decode and not runner.pending) or any(chunk.draws for chunk in plan.prefill):
            self._ticks.interrupted()  # a step more was waited for
        else:
            tokens, beside = sum(chunk.end - chunk.start for chunk in plan.prefill), runner.pending
            self._ticks.ended(now, time.monotonic(), decoded=plan.decode, prefill_tokens=tokens, beside=beside)

    def _may_step(self, one: Queued[Result]) -> bool:
        """Batch jobs wait as batch rows do. And what is made of images fills memory, which no bound of KV counts before the
        row begins: one such prompt of a priority waits for that at a time, and one that is aged."""
        if self._scheduler.paused and one.priority == "batch":
            return False
        return not isinstance(one.job, Preparation) or one.aged or not self._scheduler.waits_with_images(one.priority)

    def _drain(self) -> None:
        """Take what is in the mailbox; wait for it when there is nothing else to do."""
        now = time.monotonic()
        # One look at the gate for both questions: is there work, and when does it open? Had it opened between two looks,
        # nothing would wake us.
        self._scheduler.paused = self._batch_pause.paused(now)
        if self.idle and self._mailbox.empty():
            self._ticks.interrupted()
            self._scheduler.check()
            deadline = min(self._live.values(), default=math.inf)
            wakes = [self._batch_pause.ends_in(now), self._release(now), max(0.0, deadline - now)]
            if self._kv is not None:
                wakes.append(self._kv.tend(busy=False))
            self._report(now=True)
            wake = min((seconds for seconds in wakes if seconds not in (None, math.inf)), default=None)
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
            case Read() | Found() | Seen() | Saved() | Cleared():
                self._take_in(message)
            case Compiled():
                for request in self._forms.received(message):
                    self._start(request, message.form)
            case PauseBatch(on):
                self._batch_pause.hold(time.monotonic()) if on else self._batch_pause.release(time.monotonic())
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
                self._live[message.id] = math.inf if message.deadline is None else message.deadline
                self._start(message)
            case _:
                assert_never(message)

    def _start(self, request: Request, form: Form | None = None) -> None:
        """`form` is that of the request's structure, once it is compiled."""
        try:
            _check_able(self._loaded, request)
            match request:
                case GenerationRequest():
                    self._start_generation(request, form)
                case EmbeddingRequest():
                    self._jobs.add(start_embedding(self._loaded, request), time.monotonic())
                case TranscriptionRequest():
                    self._jobs.add(start_transcription(self._loaded, request), time.monotonic())
                case _:
                    assert_never(request)
        except Exception as error:  # noqa: BLE001 - it ends this request alone
            self._fail(request.id, error)

    def _start_generation(self, request: GenerationRequest, form: Form | None) -> None:
        assert self._tokens is not None
        if request.structure is not None and form is None:
            form = self._forms.form(request, request.structure)
            if form is None:
                return  # it comes back with `Compiled`
        preparation = Preparation(self._loaded, self._tokens, self._options, request, form)
        if preparation.images:
            self._jobs.add(preparation, time.monotonic())
        else:
            self._begin(preparation.step())

    def _begin(self, prepared: Prepared) -> None:
        assert self._runner is not None
        sequence = prepared.sequence
        self._outputs[sequence.id] = prepared.output
        self._runner.add(prepared.row)
        look_up = None if self._kv is None else lookup(self._loaded, prepared, self._kv)
        if look_up is not None:
            self._lookups[sequence.id] = look_up
        ready = look_up is None or look_up(prepared.row.prompt)
        if not ready:
            sequence.phase = Phase.FETCHING
        self._looking_up[sequence.id] = sequence.prompt_tokens
        self._scheduler.add(sequence)
        if ready:
            self._accept(sequence.id)

    def _collect(self, result: StepResult) -> None:
        for drawn in result.drawn:
            output = self._outputs.get(drawn.id)
            if output is None:
                continue  # ended by the token before, or cancelled
            try:
                events = output.take(drawn.token, drawn.logprob, drawn.top)
            except Exception as error:  # noqa: BLE001 - its neighbours run on
                self._fail(drawn.id, error)
                continue
            self._events += events
            if any(map(is_last, events)):
                self._end(drawn.id)
        for request_id, cause in result.failed.items():
            if request_id in self._outputs:  # what was drawn before may have been its end
                self._fail(request_id, cause)

    def _step(self, job: Job[Result]) -> None:
        try:
            result = job.step()
            if isinstance(result, Prepared):
                self._jobs.remove(job.id)
                self._begin(result)
                return
        except Exception as error:  # noqa: BLE001 - it ends this request alone
            self._fail(job.id, error)
            return
        if result is not None:
            self._end(job.id)
            self._events.append(result)

    def _end(self, request_id: str) -> None:
        """Forget a request, wherever it is. Unknown ids are ended already."""
        self._live.pop(request_id, None)
        self._jobs.remove(request_id)
        self._outputs.pop(request_id, None)
        self._looking_up.pop(request_id, None)
        self._lookups.pop(request_id, None)
        self._forms.forget(request_id)
        leaves_by_plan = self._scheduler.end(request_id)
        if self._runner is not None:
            self._runner.drop(request_id)
        if self._kv is not None and not leaves_by_plan:
            self._kv.close(request_id)

    # The KV cache ----------------------------------------------------------------------------------------------------

    def _made(self, make_cache: MakeCache | None) -> GuardedCache | None:
        if make_cache is None or self._runner is None:
            return None
        try:
            kv = GuardedCache(make_cache(new_cache=self._runner.new_cache, post=self._mailbox.put))
        except Unsupported as error:
            logger.warning("this model's KV is not kept: %s", error, extra={"action": "kv_off"})
            return None
        self._runner.keeper = kv
        return kv

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
                self._kv.cleared()
                self._report(now=True)
            case _:
                assert_never(answer)

    def _restore(self, runner: Runner) -> None:
        """Rows that begin now begin with what memory has of their prompts."""
        for sequence in self._scheduler.starting():
            if self._kv is not None and not self._kv.ready(sequence.id):
                sequence.phase = Phase.FETCHING
                continue
            sequence.prefilled = runner.restore(sequence.id)
            if self._kv is not None:
                sequence.checkpoints_at = self._kv.checkpoints_at(sequence.id)
            output = self._outputs.get(sequence.id)
            if output is not None and not sequence.drawn:
                output.cached_tokens = sequence.prefilled

    def _after_leaving(self, runner: Runner, plan: Plan) -> None:
        """Rows that ended are forgotten; preempted ones ask for their own KV and wait. What has none is computed again."""
        for request_id in plan.leave:
            if self._kv is not None:
                self._kv.close(request_id)
        for request_id in plan.preempted:
            look_up = self._lookups.get(request_id)
            if look_up is None or look_up(runner.tokens(request_id)):
                self._scheduler.fetched(request_id)

    def _report(self, *, now: bool = False) -> None:
        for reporter in self._reporters:
            reporter.report(now=now)

    def _batch_report(self) -> BatchReport:
        scheduler = self._scheduler
        rows, bound = scheduler.running, scheduler.kv_tokens_bound
        return BatchReport(rows, len(self._live) - rows, scheduler.kv_tokens, bound, scheduler.preemptions)

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

    def _fail(self, request_id: str, error: Exception) -> None:
        """End one request with an error of its own, or one of ours, which only the log tells in full."""
        if not isinstance(error, DuetError):
            logger.error("a request failed", exc_info=error, extra={"action": "request_failed"})
            error = Internal(f"the model failed on this request: {type(error).__name__}")
        self._end(request_id)
        self._events.append(Failed.of(request_id, error))

    def _fail_all(self, message: str) -> None:
        for request_id in self._live:
            self._events.append(Failed(request_id, "worker_lost", message))
        self._emit()

    def _emit(self) -> None:
        events, self._events = self._events, []
        try:
            if events:
                self._channel.send(EventFrame(events))
        except PayloadTooLarge:
            self._emit_singly(events)

    def _emit_singly(self, events: list[Event]) -> None:
        """All together they are too large for a message: a request whose event is so alone fails, its neighbours do not."""
        ended: set[str] = set()
        for event in events:
            if event.id in ended:
                continue
            try:
                self._channel.send(EventFrame([event]))
            except PayloadTooLarge as error:
                ended.add(event.id)
                self._end(event.id)
                self._channel.send(EventFrame([Failed.of(event.id, error)]))


def _check_able(loaded: Loaded, request: Request) -> None:
    wanted = {GenerationRequest: "chat", EmbeddingRequest: "embedding", TranscriptionRequest: "asr"}[type(request)]
    if wanted not in loaded.capabilities:
        able = " and ".join(loaded.capabilities)
        raise InvalidRequest(f"{request.model} cannot do {wanted}: it does {able}", param="model")
