"""Checkpoints and a worker's loop in this process, its channel replaced by a list: the real code but for the socket."""

from __future__ import annotations

import io
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from engine.fleet.protocol import EventFrame
from engine.kvstore.leases import Lease
from engine.types import (
    Accepted,
    BatchReport,
    Failed,
    Finished,
    GenerationRequest,
    MemoryReport,
    Message,
    Part,
    SamplingParams,
    Structure,
    TextDelta,
)
from engine.worker.loop import Loop, MakeCache
from engine.worker.model import Loaded
from engine.worker.runtime.batch import Batch, Row
from engine.worker.runtime.loader import load
from engine.worker.runtime.runner import Runner
from engine.worker.scheduler.policy import Plan, PrefillChunk
from engine.worker_config import BatchLimits, ModelOptions, WorkerConfig
from tests import checkpoints


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/mlx" in str(item.path):
            item.add_marker(pytest.mark.mlx)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`checkpoint(kind, dtype)` is the folder of that checkpoint, made once."""
    root = tmp_path_factory.mktemp("checkpoints")

    def make(kind: str, dtype: str = "float32") -> Path:
        folder = root / f"{kind}-{dtype}"
        return folder if folder.exists() else checkpoints.write(kind, folder, dtype)

    return make


@pytest.fixture(scope="session")
def model(checkpoint: Callable[..., Path]) -> Callable[..., Loaded]:
    """`model(kind, dtype)` is that checkpoint, loaded once."""
    found: dict[tuple[str, str], Loaded] = {}

    def get(kind: str, dtype: str = "float32") -> Loaded:
        role = {"embedding": "embedding", "qwen3_asr": "asr"}.get(kind, "chat")
        if (kind, dtype) not in found:
            found[kind, dtype] = load(checkpoint(kind, dtype), role)
        return found[kind, dtype]

    return get


@pytest.fixture(scope="session")
def alone(model: Callable[..., Loaded]) -> Callable[..., bytes]:
    """`alone(kind, request, dtype=, kv_bits=)` is what a request says when it runs alone, without any cache of earlier prompts.

    The request must draw the same tokens each time: greedy, or with a seed. Many tests compare with the same answers, so each is
    computed once.
    """
    found: dict[tuple[str, str, int | None, bytes], bytes] = {}

    def answer(kind: str, request: GenerationRequest, *, dtype: str = "float32", kv_bits: int | None = None) -> bytes:
        assert request.sampling.temperature == 0.0 or request.sampling.seed is not None
        key = (kind, dtype, kv_bits, msgspec.msgpack.encode(msgspec.structs.replace(request, id="")))
        if key not in found:
            found[key] = Driver(model(kind, dtype), kv_bits=kv_bits).run([request])[request.id]
        return found[key]

    return answer


class Recorder:
    """A channel's sending side that keeps what was sent. Reports come at any time, so they are kept apart."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.memory: list[MemoryReport] = []
        self.batch: list[BatchReport] = []

    def send(self, message: Any) -> None:
        if isinstance(message, MemoryReport):
            self.memory.append(message)
            return
        if isinstance(message, BatchReport):
            self.batch.append(message)
            return
        self.sent += message.events if isinstance(message, EventFrame) else [message]


class Driver:
    """Requests into a loop at chosen ticks, events out."""

    def __init__(
        self,
        loaded: Loaded,
        *,
        max_rows: int = 16,
        chunk_tokens: int = 64,
        kv_bits: int | None = None,
        active_kv_bytes: int | None = None,
        kv: Lease | None = None,
        make_cache: MakeCache | None = None,
    ) -> None:
        self.recorder, self.mailbox = Recorder(), queue.SimpleQueue[Any]()
        config = WorkerConfig(
            model="m",
            path=b"m",
            options=ModelOptions(kv_bits=kv_bits),  # type: ignore[arg-type]
            batch=BatchLimits(max_rows=max_rows, chunk_tokens=chunk_tokens),
            kv=kv,
            active_kv_bytes=active_kv_bytes,
        )
        self.loop = Loop(loaded, self.recorder, self.mailbox, config, make_cache=make_cache)  # type: ignore[arg-type]
        self.ticks = 0

    def post(self, message: Any) -> None:
        self.mailbox.put(message)

    def tick(self) -> None:
        self.loop.tick()
        self.loop._scheduler.check()
        self.ticks += 1

    # The inside of the worker: the only place in the tests that knows it.

    @property
    def runner(self) -> Runner:
        assert self.loop._runner is not None
        return self.loop._runner

    @property
    def batch(self) -> Batch:
        """What decodes now; a new one after a step that failed."""
        return self.runner._batch

    def rows(self) -> dict[str, Row]:
        """The rows that take part in the next step, by request: those of requests that have ended leave first."""
        scheduler, batch = self.loop._scheduler, self.batch
        return {row.id: row for row in [*batch.rows, *batch._joining] if row.id not in scheduler._leaving}

    def scheduled(self) -> set[str]:
        """The requests that have a row, by the scheduler's count."""
        return set(self.loop._scheduler._running)

    def prefilled(self, request_id: str) -> int:
        """Prompt tokens that are computed of a request without a row; 0 before it begins."""
        row = self.runner._prefilling.get(request_id)
        return 0 if row is None else row.prefilled

    def waiting(self) -> int:
        """Requests that have no row yet, as the gateway hears it."""
        return self.report().waiting

    def kv_tokens(self) -> int:
        """Tokens whose KV running and prefilling requests hold, as the gateway hears it."""
        return self.report().kv_tokens

    def report(self) -> BatchReport:
        return self.loop._sequences.report()

    def send_reports(self) -> None:
        """As the loop does before it waits."""
        self.loop._report(now=True)

    def preempt(self, request_id: str) -> bool:
        """Have a row leave with the next tick and come back. False if it cannot."""
        return self.loop._scheduler.preempt(request_id)

    def preemptions(self) -> int:
        """How often a row was swapped out so far, as the gateway hears it."""
        return self.report().preemptions

    def fail_step(
        self,
        patch: pytest.MonkeyPatch,
        message: str = "the device is gone",
        *,
        place: str = "_forward",
        once: bool = False,
    ) -> list[str]:
        """Decode steps fail at the end of one method of `Batch`. `once`: only one step of a batch with rows fails.

        The list that is returned grows by `place` with each failure.
        """
        original, failed = getattr(Batch, place), list[str]()

        def fails(batch: Batch, *arguments: Any) -> Any:
            found = original(batch, *arguments)
            if once and (failed or not batch.rows):
                return found
            failed.append(place)
            raise RuntimeError(message)

        patch.setattr(Batch, place, fails)
        return failed

    def fail_prefill(
        self, patch: pytest.MonkeyPatch, message: str = "the device is gone", *, once: bool = False
    ) -> list[PrefillChunk]:
        """Prompt chunks fail, `once` or always. The list that is returned grows by each chunk that is tried."""
        original, tried = Runner._prefill, list[PrefillChunk]()

        def fails(runner: Runner, chunk: PrefillChunk) -> None:
            tried.append(chunk)
            if not once or len(tried) == 1:
                raise RuntimeError(message)
            original(runner, chunk)

        patch.setattr(Runner, "_prefill", fails)
        return tried

    def break_loop(self, patch: pytest.MonkeyPatch) -> None:
        """The next tick raises an error that belongs to no request."""

        def fails(plan: Plan) -> Any:
            raise RuntimeError("the device is gone")

        patch.setattr(self.runner, "execute", fails)

    @property
    def quiet(self) -> bool:
        """Nothing to do, and nothing to wait for: a tick would wait for ever."""
        return self.loop.idle and self.mailbox.empty() and not self.loop._forms.waiting and not self.loop._desk.decoding

    def drain(self) -> None:
        while not self.quiet:
            self.tick()

    def run(self, requests: list[GenerationRequest], arrivals: list[int] | None = None) -> dict[str, bytes]:
        """Every request's generated bytes; the requests come in at the given ticks."""
        left = list(zip(arrivals or [0] * len(requests), requests, strict=True))
        while left or not self.quiet:
            for entry in [entry for entry in left if entry[0] <= self.ticks]:
                self.post(entry[1])
                left.remove(entry)
            if self.quiet:
                self.ticks += 1  # nothing to do until the next one arrives
                continue
            self.tick()
        return {request.id: self.raw(request.id) for request in requests}

    def run_all(self, requests: list[GenerationRequest]) -> None:
        """Until each of them has ended in any way."""
        for request in requests:
            self.post(request)
        self.drain()

    def of(self, request_id: str, kind: type) -> list[Any]:
        return [event for event in self.recorder.sent if isinstance(event, kind) and event.id == request_id]

    def raw(self, request_id: str) -> bytes:
        """The exact bytes of a request's tokens (asked for with logprobs); it must have finished."""
        assert len(self.of(request_id, Finished)) == 1, self.of(request_id, Failed)
        return b"".join(event.logprob.raw for event in self.of(request_id, TextDelta))

    def text(self, request_id: str) -> str:
        shown = "".join(event.text for event in self.of(request_id, TextDelta))
        return shown + "".join(event.text for event in self.of(request_id, Finished))

    def accepted(self, request_id: str) -> bool:
        return bool(self.of(request_id, Accepted))


def ask(
    request_id: str,
    text: str,
    *,
    tokens: int = 24,
    images: tuple[bytes, ...] = (),
    role: str = "user",
    stop: tuple[str, ...] = (),
    structure: Structure | None = None,
    **sampling: Any,
) -> GenerationRequest:
    """A greedy request with log-probabilities, unless said otherwise."""
    parts = (*(Part("image", image=image) for image in images), Part("text", text))
    params = SamplingParams(**{"temperature": 0.0, "logprobs": True, **sampling})
    return GenerationRequest(
        id=request_id,
        model="m",
        messages=(Message(role, parts),),
        sampling=params,
        max_tokens=tokens,
        stop_strings=stop,
        structure=structure,
    )


def words(count: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    return "".join(chr(97 + i) for i in rng.integers(0, 26, count))


def picture(seed: int, size: tuple[int, int] = (96, 64)) -> bytes:
    """A PNG of noise."""
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
