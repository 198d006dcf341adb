"""The worker's one loop: mailbox → plan → execute → apply → emit.

Owned by the main thread, which alone touches the model. A second thread only puts messages into the mailbox.
"""

from __future__ import annotations

import logging
import queue
from collections import deque
from typing import assert_never

from duet.channel import BlockingChannel, ChannelClosed
from duet.errors import DuetError, Internal, InvalidRequest
from engine.types import (
    Accepted,
    EmbeddingRequest,
    EmbeddingResult,
    Failed,
    Finished,
    GenerationRequest,
    TextDelta,
    TranscriptionRequest,
    TranscriptionResult,
)
from engine.worker.prompts.output import Output, TokenText
from engine.worker.runtime import memory
from engine.worker.runtime.families.audio import start_transcription
from engine.worker.runtime.families.embedding import start_embedding
from engine.worker.runtime.families.job import Job
from engine.worker.runtime.families.text import prepare_generation
from engine.worker.runtime.loader import Loaded
from engine.worker.runtime.runner import Runner, StepResult
from engine.worker.scheduler.policy import Scheduler
from engine.workers.protocol import Cancel, Events, Shutdown, ToWorker

logger = logging.getLogger(__name__)

Mailbox = queue.SimpleQueue[ToWorker | Exception | None]
"""None: the gateway has gone. An exception: what it sent cannot be understood."""


class Stop(Exception):
    """The gateway closed the channel or asked to end."""


class Loop:
    """Every request that enters ends in exactly one `Finished`, `Failed` or result, unless it was cancelled.

    Raises `LoadError` for a model that loads and yet cannot be run.
    """

    def __init__(
        self, loaded: Loaded, channel: BlockingChannel[ToWorker], mailbox: Mailbox, *, max_rows: int, chunk_tokens: int
    ) -> None:
        self._loaded, self._channel, self._mailbox = loaded, channel, mailbox
        self._runner = Runner(loaded) if "chat" in loaded.capabilities else None
        if self._runner is not None and not self._runner.batches and max_rows > 1:
            logger.warning("this model's requests run one after another", extra={"action": "batching_off"})
            max_rows = 1
        self._scheduler = Scheduler(max_rows=max_rows, chunk_tokens=chunk_tokens)
        self._tokens = TokenText(loaded.tokenizer) if self._runner else None
        self._outputs: dict[str, Output] = {}
        self._jobs: deque[Job] = deque()
        self._events: list[Accepted | TextDelta | Finished | Failed] = []

    @property
    def idle(self) -> bool:
        return self._scheduler.idle and not self._jobs and not (self._runner and self._runner.busy)

    def run(self) -> None:
        """Until the gateway goes. An unexpected error fails every live request and ends the process."""
        try:
            while True:
                self.tick()
        except (Stop, ChannelClosed):
            return
        except Exception:
            self._fail_all("the worker met an unexpected error and restarts")
            raise

    def tick(self) -> None:
        self._drain()
        if self._runner is not None:
            plan = self._scheduler.plan()
            result = self._runner.execute(plan)
            self._scheduler.apply(plan)
            self._collect(result)
        if self._jobs:
            self._step(self._jobs[0])
        self._emit()

    def _drain(self) -> None:
        """Take what is in the mailbox; wait for it when there is nothing else to do."""
        if self.idle and self._mailbox.empty():
            self._scheduler.check()
            memory.release()
            self._handle(self._mailbox.get())
        while not self._mailbox.empty():
            self._handle(self._mailbox.get())

    def _handle(self, message: ToWorker | Exception | None) -> None:
        match message:
            case None | Shutdown():
                raise Stop
            case Exception():
                raise message
            case Cancel(request_id):
                self._end(request_id)
                self._jobs = deque(job for job in self._jobs if job.id != request_id)
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
                prepared = prepare_generation(self._loaded, self._tokens, request)
                self._outputs[request.id] = prepared.output
                self._runner.add(prepared.row)
                self._scheduler.add(prepared.sequence)
                self._events.append(Accepted(request.id, prepared.sequence.prompt_tokens))
            case EmbeddingRequest():
                self._jobs.append(start_embedding(self._loaded, request))
            case TranscriptionRequest():
                self._jobs.append(start_transcription(self._loaded, request))
            case _:
                assert_never(request)

    def _collect(self, result: StepResult) -> None:
        for request_id, error in result.failed.items():
            logger.error("a row failed", exc_info=error, extra={"action": "row_failed"})
            self._fail(request_id, Internal(f"the model failed on this request: {type(error).__name__}"))
        for drawn in result.drawn:
            output = self._outputs.get(drawn.id)
            if output is None:
                continue  # ended by the token before, or cancelled
            delta, finished = output.take(drawn.token, drawn.logprob, drawn.top)
            if delta is not None:
                self._events.append(delta)
            if finished is not None:
                self._events.append(finished)
                self._end(drawn.id)

    def _step(self, job: Job) -> None:
        try:
            result: EmbeddingResult | TranscriptionResult | None = job.step()
        except DuetError as error:
            self._fail(job.id, error)
        except Exception as error:
            logger.exception("a job failed", extra={"action": "job_failed"})
            self._fail(job.id, Internal(f"the model failed on this request: {type(error).__name__}"))
        else:
            # Round robin: a long recording does not hold up a short one.
            self._jobs.rotate(-1)
            if result is None:
                return
            self._channel.send(result)
        self._jobs = deque(other for other in self._jobs if other is not job)

    def _end(self, request_id: str) -> None:
        self._outputs.pop(request_id, None)
        self._scheduler.end(request_id)
        if self._runner is not None:
            self._runner.drop(request_id)

    def _fail(self, request_id: str, error: DuetError) -> None:
        self._end(request_id)
        self._events.append(
            Failed(request_id, error.code, error.message, error.param, error.retry_after_seconds),
        )

    def _fail_all(self, message: str) -> None:
        for request_id in [*self._outputs, *(job.id for job in self._jobs)]:
            self._events.append(Failed(request_id, "worker_lost", message))
        self._emit()

    def _emit(self) -> None:
        if self._events:
            self._channel.send(Events(self._events))
            self._events = []


def _unable(model: str, wanted: str, able: str) -> InvalidRequest:
    return InvalidRequest(f"{model} cannot do {wanted}: it does {able}", param="model")
