"""The worker's one loop: mailbox → restore → plan → execute → apply → emit.

Owned by the main thread, which alone touches the model. Other threads only put messages into the mailbox: what the gateway sent,
what the KV cache's thread has read or written, and compiled forms.
"""

from __future__ import annotations

import logging
import math
import queue
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from duet.channel import BlockingChannel, ChannelClosed
from duet.errors import DeadlineExceeded
from engine.fleet.protocol import Cancel, ClearKv, FreeMemory, PauseBatch, Ping, Pong, Shutdown, ToWorker
from engine.types import BatchReport, KvReport, MemoryReport
from engine.worker.families import Families, Result, Started
from engine.worker.families.text import EncodeJob, Prepared, TextFamily
from engine.worker.forms.compiling import Compiled, FormQueue
from engine.worker.kvcache.absent import AbsentCache
from engine.worker.kvcache.messages import Answer, Cleared, Found, Read, Saved, Seen
from engine.worker.live import LiveRequests
from engine.worker.model import Loaded
from engine.worker.pictures import Decoded, PictureDesk
from engine.worker.reports import Reporter
from engine.worker.runtime import memory
from engine.worker.runtime.runner import Runner
from engine.worker.scheduler.batch_pause import BatchPause
from engine.worker.scheduler.jobs import Job, Jobs, Queued
from engine.worker.scheduler.pace import Ticks
from engine.worker.scheduler.policy import Scheduler
from engine.worker.sequences import KvCache, MakeCache, Sequences, make_kv
from engine.worker_config import WorkerConfig

logger = logging.getLogger(__name__)

Message = ToWorker | Answer | Compiled | Decoded | Exception | None
"""None: the gateway has gone. An exception: what it sent cannot be understood."""
Mailbox = queue.SimpleQueue[Message]
LOOKUP_SECONDS = 0.004
"""The loop waits this long for lookups of new prompts before it begins the next step. If there is no file to read, an answer
comes within a millisecond or two, while the step before is still being computed. Without this wait it would cost a whole tick."""


class Stop(Exception):
    """The gateway closed the channel or asked to end."""


def _of_request(error: BaseException) -> Exception:
    """What a request's work raised. A panic of a native library (tokenizers, llguidance) is no `Exception`. Raises what is meant
    for the whole process."""
    if isinstance(error, Exception):
        return error
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
        raise error
    logger.error("a native library panicked", exc_info=error, extra={"action": "native_panic"})
    return RuntimeError(f"{type(error).__name__}: {error}")


class Loop:
    """Every request that enters ends in exactly one `Finished`, `Failed` or `Result`, unless it is cancelled.

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
        self._channel, self._mailbox = channel, mailbox
        self._flush_seconds = config.kv.flush_seconds if config.kv is not None else 0.0
        self._active_kv_bytes = config.active_kv_bytes
        self._live = LiveRequests(channel)
        self._forms = FormQueue(loaded, mailbox.put)
        self._desk = PictureDesk(mailbox.put, lambda request_id: self._live.get(request_id) is not None)
        self._text = TextFamily(loaded, config.options, self._forms, self._desk)
        self._families = Families(loaded, self._text)
        self._jobs = Jobs[Result]()
        self._runner: Runner | None = None
        self._kv: KvCache = AbsentCache()
        max_rows = config.batch.max_rows
        if "chat" in loaded.capabilities:
            self._runner = Runner(loaded, config.options)
            self._kv = make_kv(make_cache, self._runner, mailbox.put)
            if not self._runner.batches and max_rows > 1:
                logger.warning("this model's requests run one after another", extra={"action": "batching_off"})
                max_rows = 1
        self._scheduler = Scheduler(max_rows=max_rows, chunk_tokens=config.batch.chunk_tokens)
        self._batch_pause = BatchPause()
        self._ticks = Ticks(self._scheduler.pace)
        self._buffers = memory.Buffers()
        self._reporters: list[Reporter[Any]] = [
            Reporter(channel.send, memory.sample, MemoryReport(), differs=memory.differs)
        ]
        if self._runner is not None:
            self._sequences = Sequences(loaded, self._live, self._scheduler, self._runner, self._kv)
            self._reporters.append(Reporter(channel.send, self._sequences.report, BatchReport()))
            self._reporters.append(Reporter(channel.send, lambda: msgspec.structs.replace(self._kv.report), KvReport()))

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
            self._desk.stop()
            self._flush()
        except Exception:
            self._live.fail_all("the worker met an unexpected error and restarts")
            raise

    def tick(self) -> None:
        self._drain()
        began = time.monotonic()
        self._scheduler.paused = self._batch_pause.paused(began)
        for request_id in self._live.late(began):
            self._live.fail(request_id, DeadlineExceeded("the answer was not complete by its deadline"))
        if self._runner is not None:
            self._run(self._runner, began)
        self._live.emit()  # no token waits for a job
        if (job := self._jobs.next(began, self._may_step, paused=self._scheduler.paused)) is not None:
            self._step(job)
            self._ticks.interrupted()
            self._live.emit()
        self._report()

    def _run(self, runner: Runner, now: float) -> None:
        """One tick of the batch."""
        if self._active_kv_bytes is not None and runner.token_bytes is not None:
            self._scheduler.kv_tokens_bound = self._active_kv_bytes // runner.token_bytes
        self._scheduler.begin(now)
        self._sequences.restore()
        plan = self._scheduler.plan()
        result = runner.execute(plan)
        self._scheduler.apply(plan, result)
        self._sequences.collect(result)
        self._sequences.leave(plan)
        self._kv.tend(busy=runner.busy)
        if (plan.decode and not runner.pending) or any(chunk.draws for chunk in plan.prefill):
            self._ticks.interrupted()  # one more step was waited for
        else:
            tokens, beside = sum(chunk.end - chunk.start for chunk in plan.prefill), runner.pending
            self._ticks.ended(now, time.monotonic(), decoded=plan.decode, prefill_tokens=tokens, beside=beside)

    def _step(self, job: Job[Result]) -> None:
        """One step of a job, which ends in its result or goes on as a sequence."""
        try:
            result = job.step()
            if isinstance(result, Prepared):
                self._jobs.forget(job.id)
                self._sequences.begin(result)
            elif result is not None:
                self._live.answer([result])
        except BaseException as error:  # noqa: BLE001 - it ends this request alone
            self._live.fail(job.id, _of_request(error))

    def _may_step(self, one: Queued[Result]) -> bool:
        """Batch jobs pause as batch rows do. Encoded images fill memory that no KV bound counts before their row begins, so only
        one such request of a priority waits for its row at a time, and one that is aged."""
        if self._scheduler.paused and one.priority == "batch":
            return False
        if not isinstance(one.job, EncodeJob) or one.job.pictures is not None:
            return True
        return one.job.ready and (one.aged or not self._scheduler.waits_with_images(one.priority))

    def _drain(self) -> None:
        """Take what is in the mailbox; wait for it when there is nothing else to do."""
        now = time.monotonic()
        # The pause is read once for two questions: is there work, and when does the pause end? If it ended between two readings,
        # nothing would wake the loop.
        self._scheduler.paused = self._batch_pause.paused(now)
        if self.idle and self._mailbox.empty():
            self._ticks.interrupted()
            self._scheduler.check()
            wakes_in = self._wakes_in(now)  # it gives memory back, which the report must show
            self._report(now=True)
            try:
                self._handle(self._mailbox.get(timeout=wakes_in))
            except queue.Empty:
                return
        if not self._mailbox.empty():  # most ticks have no message, and need not look through the live requests
            before = self._live.unaccepted()
            while not self._mailbox.empty():
                self._handle(self._mailbox.get())
            self._await_lookups(self._live.unaccepted() - before)
        if not self.idle:
            self._buffers.used()

    def _wakes_in(self, now: float) -> float | None:
        """Seconds until something has to be done without a message; None: never."""
        holds_memory = self._jobs or self._scheduler.running  # paused work goes on soon, with the same memory
        wakes = [
            self._batch_pause.ends_in(now),
            None if holds_memory else self._buffers.quiet(now),
            max(0.0, self._live.next_deadline - now),
            self._kv.tend(busy=False),
        ]
        return min((seconds for seconds in wakes if seconds not in (None, math.inf)), default=None)

    def _await_lookups(self, new: set[str]) -> None:
        """Of requests that have just come."""
        until = time.monotonic() + LOOKUP_SECONDS
        while new & self._live.unaccepted() and (left := until - time.monotonic()) > 0:
            try:
                self._handle(self._mailbox.get(timeout=left))
            except queue.Empty:
                return

    def _handle(self, message: Message) -> None:
        match message:
            case None | Shutdown():
                raise Stop
            case Exception():
                raise message
            case Cancel(request_id):
                self._live.end(request_id)
            case Read() | Found() | Seen() | Saved() | Cleared():
                self._sequences.take_in(message)
                if isinstance(message, Cleared):
                    self._report(now=True)
            case Compiled():
                for request in self._forms.received(message):
                    self._start(request.id, partial(self._text.prepare, request, message.form))
            case Decoded(viewer):
                try:
                    self._desk.received(message)
                except Exception as error:  # noqa: BLE001 - it ends this request alone
                    if self._live.get(viewer.id) is not None:  # else it has ended meanwhile
                        self._live.fail(viewer.id, error)
            case PauseBatch(on):
                self._batch_pause.hold(time.monotonic()) if on else self._batch_pause.release(time.monotonic())
            case Ping():
                self._channel.send(Pong())
            case ClearKv():
                self._kv.clear()
            case FreeMemory():
                self._kv.free_memory()
                memory.release()
            case request:
                self._live.begin(request)
                self._start(request.id, partial(self._families.start, request))

    def _start(self, request_id: str, start: Callable[[], Started]) -> None:
        live = self._live.get(request_id)
        assert live is not None
        try:
            match started := start():
                case Prepared():
                    self._sequences.begin(started)
                case None:
                    live.place = self._forms  # it comes back with `Compiled`
                case job:
                    live.place = self._jobs
                    self._jobs.add(job, time.monotonic())
        except BaseException as error:  # noqa: BLE001 - it ends this request alone
            self._live.fail(request_id, _of_request(error))

    def _report(self, *, now: bool = False) -> None:
        for reporter in self._reporters:
            reporter.report(now=now)

    def _flush(self) -> None:
        """The gateway wants this process to end: what is only in memory goes to SSD."""

        def answers() -> Answer | None:
            while not self._mailbox.empty():
                if isinstance(message := self._mailbox.get(), Saved):
                    return message
            return None

        if not self._kv.flush(self._flush_seconds, answers):
            logger.warning("not all KV could be written in time", extra={"action": "kv_flush_late"})
