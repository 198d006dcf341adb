"""A worker process that speaks the real protocol and has no model: `python -m tests.fakes.engine_worker --fd N`.

What it does is decided by the last message of a request or its raw prompt (`SAY…` below), and how it loads by `fake.json` in
the model folder: `{"load_error": "…"}`, `{"exit_code": 3}`, `{"wait_for": "go"}` (a file in the folder),
`{"capabilities": [...]}`, `{"memory_bytes": N}` (what it says that it holds).
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from duet.channel import BlockingChannel, ChannelClosed
from duet.errors import ContextTooLong
from duet.wire import Segment, Transcript, Usage
from engine.fleet.protocol import (
    Cancel,
    EventFrame,
    FreeMemory,
    LoadFailed,
    PauseBatch,
    Ping,
    Pong,
    Ready,
    Shutdown,
    ToWorker,
)
from engine.types import (
    Accepted,
    Embedded,
    EmbeddingRequest,
    Event,
    Failed,
    Finished,
    GenerationRequest,
    MemoryReport,
    TextDelta,
    ThoughtDelta,
    TokenLogprob,
    Transcribed,
    TranscriptionRequest,
    is_last,
)
from engine.worker_config import WorkerConfig

SAY_FOREVER = "forever"
"""Endless tokens."""
SAY_FAST = "fast"
"""Endless tokens, as fast as the socket takes them."""
SAY_DIE = "die"
"""Two tokens, then SIGKILL."""
SAY_REFUSE = "refuse"
"""`Failed` with context_length_exceeded as the first event."""
SAY_BREAK = "break"
"""`Failed` after two tokens."""
SAY_STATUS = "status"
"""One token: `live=N cancelled=M pid=P freed=F paused=P`: the requests beside this one, how often it was asked to free memory,
and whether its batch work is paused (0 or 1)."""
SAY_HOW = "how"
"""One token: `priority=P left=S`: the request's priority, and the whole seconds that it has left (None: no deadline)."""
SAY_NOTHING = "nothing"
"""`Accepted`, and then silence until cancelled."""
SAY_HANG = "hang"
"""`Accepted`, and then the loop hangs, whatever comes."""
SAY_THINK = "think"
"""Three tokens of thought, then an echo."""
SAY_PONDER = "ponder"
"""Thoughts without end."""
SAY_TOLD = "told"
"""One token: the `WorkerConfig` as JSON."""
DIMENSIONS = 8


class Worker:
    def __init__(self, channel: BlockingChannel[Any], config: WorkerConfig) -> None:
        self._channel, self._config = channel, config
        self._mailbox: queue.SimpleQueue[ToWorker | None] = queue.SimpleQueue()
        self._live: dict[str, Iterator[Event | None]] = {}
        self._cancelled = self._freed = 0
        self._fast = self._batch_paused = False
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        try:
            while True:
                self._mailbox.put(self._channel.receive())
        except ChannelClosed:
            self._mailbox.put(None)

    def run(self) -> None:
        while True:
            while not self._live or not self._mailbox.empty():
                message = self._mailbox.get()
                if message is None or isinstance(message, Shutdown):
                    return
                self._handle(message)
            events = [event for event in map(self._next, list(self._live)) if event is not None]
            if events:
                self._channel.send(EventFrame(events))
            if not self._fast:
                time.sleep(0.002)

    def _next(self, request_id: str) -> Event | None:
        event = next(self._live[request_id])
        if event is not None and is_last(event):
            del self._live[request_id]
        return event

    def _handle(self, message: ToWorker) -> None:
        match message:
            case Cancel(request_id):
                self._cancelled += self._live.pop(request_id, None) is not None
            case GenerationRequest():
                self._fast |= _said(message) == SAY_FAST
                self._live[message.id] = self._say(message)
            case FreeMemory():
                self._freed += 1
            case PauseBatch(on):
                self._batch_paused = on
            case Ping():
                self._channel.send(Pong())
            case EmbeddingRequest():
                self._live[message.id] = iter([_embed(message)])
            case TranscriptionRequest():
                self._live[message.id] = iter([_transcribe(message)])

    def _say(self, request: GenerationRequest) -> Iterator[Event | None]:
        said = _said(request)
        if said == SAY_REFUSE:
            param = "messages" if request.prompt is None else "prompt"
            yield Failed(request.id, ContextTooLong.code, "the prompt is too long", param)
        yield Accepted(request.id, 7)
        tokens = _answer(said)
        if said == SAY_STATUS:
            beside = f"live={len(self._live) - 1} cancelled={self._cancelled} pid={os.getpid()}"
            tokens = iter([f"{beside} freed={self._freed} paused={int(self._batch_paused)}"])
        if said == SAY_HOW:
            left = None if request.deadline is None else int(request.deadline - time.monotonic())
            tokens = iter([f"priority={request.priority} left={left}"])
        if said == SAY_TOLD:
            tokens = iter([msgspec.json.encode(self._config).decode()])
        thoughts = {SAY_THINK: 3, SAY_PONDER: 10**9}.get(said, 0)
        for _ in range(thoughts):
            yield ThoughtDelta(request.id, "a secret ")
        if request.echo:
            yield TextDelta(request.id, said, tokens=0)
        limit = request.max_tokens or 10**9
        count = 0
        for count, text in enumerate(tokens, 1):
            if text is None:
                yield None
                continue
            if said == SAY_DIE and count == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            if said == SAY_BREAK and count == 3:
                yield Failed(request.id, "internal_error", "the model failed on this request")
            logprob = TokenLogprob(text, text.encode(), -0.5) if request.sampling.logprobs else None
            yield TextDelta(request.id, text, logprob, (logprob,) * request.sampling.top_logprobs if logprob else ())
            if count == limit:
                break
        yield Finished(request.id, "length" if count == limit else "stop", Usage(7, thoughts + count, 3), "!")


def _said(request: GenerationRequest) -> str:
    """The text that decides what happens: the last message, or the raw prompt, in which token i is character i."""
    match request.prompt:
        case None:
            return "".join(part.text for part in request.messages[-1].parts)
        case str(text):
            return text
        case ids:
            return "".join(map(chr, ids))


def _answer(said: str) -> Iterator[str | None]:
    if said == SAY_NOTHING:
        while True:
            yield None
    if said == SAY_HANG:
        yield None  # `Accepted` goes out first
        threading.Event().wait()
    if said == SAY_FAST:
        while True:
            yield "x" * 2000
    if said in (SAY_FOREVER, SAY_DIE, SAY_BREAK):
        while True:
            yield "token "
    yield from (said[i : i + 3] for i in range(0, len(said), 3))


def _embed(request: EmbeddingRequest) -> Embedded:
    """Input i is the unit vector of axis i."""
    width = request.dimensions or DIMENSIONS
    vectors = np.eye(len(request.inputs), width, dtype="<f4")
    return Embedded(request.id, vectors.tobytes(), width, sum(len(item) for item in request.inputs))


def _transcribe(request: TranscriptionRequest) -> Transcribed:
    """The text says what the request asked for."""
    seconds = len(request.audio) / 4 / 16000
    text = f"prompt={request.prompt} hotwords={'/'.join(request.hotwords)} language={request.language}"
    return Transcribed(request.id, Transcript(text, seconds, "en", (Segment(0.0, seconds, text),)))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    channel: BlockingChannel[Any] = BlockingChannel.from_fd(parser.parse_args().fd, WorkerConfig | ToWorker)
    try:
        config = channel.receive()
    except ChannelClosed:
        return 0
    assert isinstance(config, WorkerConfig)
    folder = Path(os.fsdecode(config.path))
    plan: dict[str, Any] = {}
    if (folder / "fake.json").exists():
        plan = json.loads((folder / "fake.json").read_text())
    with (folder / "starts.log").open("a") as log:
        log.write(f"{os.getpid()}\n")
    if "exit_code" in plan:
        return int(plan["exit_code"])
    if "load_error" in plan:
        channel.send(LoadFailed(plan["load_error"]))
        return 1
    while "wait_for" in plan and not (folder / plan["wait_for"]).exists():
        time.sleep(0.005)
    worker = Worker(channel, config)
    channel.send(Ready(tuple(plan.get("capabilities", ["chat"])), 4096, 123, 1000))
    if "memory_bytes" in plan:
        channel.send(MemoryReport(footprint_bytes=plan["memory_bytes"]))
    try:
        worker.run()
    except ChannelClosed:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
